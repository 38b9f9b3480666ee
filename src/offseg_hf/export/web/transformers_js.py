"""A folder that transformers.js loads: it knows no code from repositories, so the model says that it is a SegFormer.

The network is ours, and exact. What is before and after it is that of transformers.js: it stretches the photo to the
network's size by the browser's own resampling, and looks through no windows, so that labels differ from Python's.
"""

import json
from pathlib import Path
from shutil import copyfile

from offseg_hf.export import Format, Precision
from offseg_hf.export.runtime import FILES
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.utils.files import TRANSFORMERS_JS


# Precision -> file, and the name that transformers.js has for it.
MODEL_FILES = {
    Precision.fp32: ("model.onnx", "fp32"),
    Precision.fp16: ("model_fp16.onnx", "fp16"),
    Precision.int8: ("model_quantized.onnx", "q8"),
}

README = """# {title} for transformers.js

```js
import {{ pipeline, env }} from "@huggingface/transformers";

env.allowLocalModels = true;
env.localModelPath = "./"; // of the page: the folder that holds this one
const segmenter = await pipeline("image-segmentation", "{folder}", {{ dtype: "{dtype}" }});
const segments = await segmenter("photo.jpg");
```

The network is that of the model. The pixels are not: transformers.js stretches the photo to {width} × {height} by the
browser's own resampling and looks through no windows, so that labels differ from those of the model in Python. The
page beside this folder, `index.html`, does as Python does.
"""


def write_transformers_js(folder: Path, segmenter: Segmenter, precision: Precision, title: str) -> None:
    """Write the folder for transformers.js beside an exported ONNX model.

    Args:
        folder: of the exported model.
        segmenter: the model that was exported.
        precision: of the export.
        title: of the model.
    """
    config, processor = segmenter.model.config, segmenter.processor
    height, width = json.loads((folder / "config.json").read_bytes())["size"]
    file, dtype = MODEL_FILES[precision]
    target = folder / TRANSFORMERS_JS
    (target / "onnx").mkdir(parents=True)
    copyfile(folder / FILES[Format.onnx][0], target / "onnx" / file)
    settings = {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_pad": False,
        **{name: getattr(processor, name) for name in ("do_rescale", "rescale_factor", "do_normalize")},
        **{name: getattr(processor, name) for name in ("image_mean", "image_std")},
    }
    model = {
        "model_type": "segformer",
        "architectures": ["SegformerForSemanticSegmentation"],
        "id2label": {str(index): name for index, name in config.id2label.items()},
        "label2id": dict(config.label2id),
    }
    for name, content in (("config.json", model), ("preprocessor_config.json", settings)):
        (target / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    readme = README.format(title=title, folder=TRANSFORMERS_JS, dtype=dtype, width=width, height=height)
    (target / "README.md").write_text(readme, encoding="utf-8")
