#!/usr/bin/env bash
# Sets the lab up on Paperspace Gradient; run it again after each start of the machine.
#
#   bash environment/setup-paperspace.sh
#
# The repository's folder and /storage outlive the machine, and how large they are depends on the plan. What
# does not fit there goes to the machine's own disk, which is empty at each start. FINELAB_VENV and HF_HOME,
# where they are set, say otherwise.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

free_gb() { { df --output=avail -BG "$1" 2> /dev/null || echo 0; } | tail -n 1 | tr -dc 0-9; }

# A folder that is there is kept: what it holds is the reason why less is free than at first.
if [ -z "${FINELAB_VENV:-}" ]; then
  FINELAB_VENV=$PWD/.venv
  if [ ! -d "$FINELAB_VENV" ] && [ "$(free_gb .)" -lt 15 ]; then FINELAB_VENV=$HOME/finelab-venv; fi
fi
if [ -z "${HF_HOME:-}" ]; then
  HF_HOME=/storage/huggingface
  if [ ! -d "$HF_HOME" ] && [ "$(free_gb /storage)" -lt 20 ]; then HF_HOME=$HOME/.cache/huggingface; fi
fi
export FINELAB_VENV HF_HOME
echo "environment: $FINELAB_VENV"
echo "models:      $HF_HOME"

# For the terminals that are opened from now on
settings="export FINELAB_VENV='$FINELAB_VENV' HF_HOME='$HF_HOME'"
grep -qsxF "$settings" ~/.bashrc || echo "$settings" >> ~/.bashrc

# The first doctor makes the environment; what it finds is said by the second. 2: it said why it could not.
python3 lab.py doctor > /dev/null || [ $? -ne 2 ]
# Gradient's own Jupyter opens the notebooks; this kernel is the lab's Python, with the same settings.
"$FINELAB_VENV/bin/python" -m ipykernel install --user --name finelab --display-name finelab \
  --env HF_HOME "$HF_HOME" > /dev/null
code=0
python3 lab.py doctor || code=$?
echo "These places hold in a new terminal, and in this one after: source ~/.bashrc"
exit $code
