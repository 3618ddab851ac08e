#!/usr/bin/env bash
# Train a pair on both sets of labels: train.sh ptco-small OUT [more arguments of moe-md train]
# A training that was stopped is resumed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pair=$1 out=$2
shift 2
moe-md train --data ptco_fm --settings "$here/$pair.toml" --validation-fraction 0.08 --out "$out/fm" "$@"
moe-md train --data ptco_pbe --start "$out/fm/checkpoint.msgpack" --settings "$here/pbe.toml" \
    --validation-fraction 0.15 --out "$out/pbe" "$@"
echo "the pair: $out/pbe/checkpoint.msgpack"
