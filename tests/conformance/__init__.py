"""What a client of the chat API may rely on, asked over HTTP.

`python -m pytest tests/conformance` starts the lab's own server on the embedded model. Any other one that
speaks the same API is asked with FINELAB_BASE_URL=http://HOST:PORT and FINELAB_API_KEY=KEY; for vLLM, set
FINELAB_SERVER=vllm as well: what it is known to do otherwise stands in differences.py.
"""
