"""Read the flags that we use from vLLM's source: `python -m tests.deployment.read_vllm_flags WHEEL`.

The wheel comes from `pip download vllm==0.33.0 --no-deps --python-version 3.12 --only-binary=:all:` and is
only read: importing vLLM takes its whole CUDA stack. Prints the content of vllm_flags.json.
"""

import ast
import json
import sys
import zipfile
from contextlib import suppress

USED = """
    --served-model-name --port --dtype --max-model-len --max-num-seqs --shutdown-timeout --middleware
    --enable-request-id-headers --enable-prompt-tokens-details --sse-keep-alive-interval --enforce-eager
    --enable-sleep-mode --enable-lora --max-loras --max-lora-rank --lora-modules
    --chat-template
"""
FRONTEND, ENGINE = "vllm/entrypoints/common/cli_args.py", "vllm/engine/arg_utils.py"


def read(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [FRONTEND, ENGINE, *(each for each in archive.namelist() if each.startswith("vllm/config/"))]
        trees = {each: ast.parse(archive.read(each)) for each in names if each.endswith(".py")}
        version = (
            next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
            .split("-")[1]
            .removesuffix(".dist")
        )
    literals, fields, registered = {}, {}, set()
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if name in (FRONTEND, ENGINE):
                    fields.setdefault("--" + node.target.id.replace("_", "-"), ast.unparse(node.annotation))
            elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal["):
                with suppress(ValueError):  # of other names than constants
                    literals[node.targets[0].id] = list(ast.literal_eval(node.value.slice))
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".add_argument"):
                registered |= {each.value for each in node.args if isinstance(each, ast.Constant)}
            elif name == FRONTEND and isinstance(node, ast.ClassDef):  # each field of these is registered
                targets = [each.target.id for each in node.body if isinstance(each, ast.AnnAssign)]
                registered |= {"--" + each.replace("_", "-") for each in targets}
    missing = [flag for flag in USED.split() if flag not in registered]
    assert not missing, f"vLLM {version} does not register {missing}"
    return {
        "vllm": version,
        "made_by": "python -m tests.deployment.read_vllm_flags WHEEL, see there",
        "flags": {flag: described(flag, fields, literals) for flag in USED.split()},
    }


def described(flag, fields, literals):
    """What a flag takes. A choice of a config class has the type that arg_utils.py gives its alias."""
    annotation = fields.get(flag, "")
    if flag == "--middleware":
        return {"kind": "append"}
    if flag == "--max-lora-rank":
        return {"kind": "integer", "choices": literals["MaxLoRARanks"]}
    if choices := literals.get(annotation):
        return {"kind": "integer" if isinstance(choices[0], int) else "text", "choices": choices}
    if annotation.startswith("bool"):
        return {"kind": "flag"}
    if "list[" in annotation:
        return {"kind": "list"}
    assert annotation.startswith(("int", "str")), (flag, annotation)
    return {"kind": "integer" if annotation.startswith("int") else "text"}


if __name__ == "__main__":
    print(json.dumps(read(sys.argv[1]), indent=1))
