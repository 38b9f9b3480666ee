"""Which nodes of an ONNX graph a browser computes on the GPU, by what ONNX Runtime's WebGPU provider registers.

Source: microsoft/onnxruntime @ 003f772b, onnxruntime/core/providers/webgpu/webgpu_execution_provider.cc (the classes
that it registers) and webgpu_supported_types.h (their types: float, float16, int32 and uint32, some of them bool).
Max, Min and Clip of int32 are not in there, but onnxruntime-node 1.30 has them on the GPU; Split of int32 on the CPU.
"""

import onnx


OF_FLOATS = set(
    "Abs Neg Floor Ceil Reciprocal Sqrt Exp Erf Sigmoid HardSigmoid Log Sin Cos Tan Tanh Elu Relu LeakyRelu Gelu Conv "
    "ConvTranspose MaxPool AveragePool GlobalAveragePool GlobalMaxPool Gemm MatMul Softmax LayerNormalization "
    "InstanceNormalization BatchNormalization Resize Split DepthToSpace Pad Einsum CumSum ReduceMax ReduceMean "
    "ReduceMin ReduceProd ReduceSum ReduceL1 ReduceL2 ReduceLogSum ReduceSumSquare ReduceLogSumExp".split()
)
OF_NUMBERS = set(
    "Add Sub Mul Div Pow Max Min Clip Equal Greater Less GreaterOrEqual LessOrEqual Not Where Cast Range Gather "
    "GatherElements Concat Expand Slice Tile Transpose ArgMax ArgMin".split()
)
OF_ANY = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}  # which compute nothing
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
NUMBERS = FLOATS | {onnx.TensorProto.INT32, onnx.TensorProto.UINT32, onnx.TensorProto.BOOL}


def data_nodes(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, int]]:
    """The nodes that compute on data, not on shapes, which stay on the CPU; and the type of what they give."""
    typed = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in typed}
    data, nodes = {value.name for value in graph.input}, []
    for node in graph.node:
        is_range = node.op_type == "Range"  # numbers of pixels, beside which their arithmetic is on as many values
        if node.op_type in ("Shape", "Size") or not (is_range or data.intersection(node.input)):
            continue
        data.update(node.output)
        nodes.append((node, types[node.output[0]]))
    return nodes


def outside_webgpu(graph: onnx.GraphProto) -> list[str]:
    """Nodes on data that the provider leaves to the CPU, each of which would fetch its data from the GPU."""
    allowed = dict.fromkeys(OF_FLOATS, FLOATS) | dict.fromkeys(OF_NUMBERS, NUMBERS)
    return [
        f"{node.op_type} of {onnx.TensorProto.DataType.Name(kind)}"
        for node, kind in data_nodes(graph)
        if node.domain or (node.op_type not in OF_ANY and kind not in allowed.get(node.op_type, ()))
    ]
