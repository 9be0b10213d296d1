#!/usr/bin/env bash
# Reproduce the results of docs/MODEL_ZOO.md on photos, from scratch, on a CPU.
#
#     tools/reproduce_zoo.sh PHOTOS [OUTPUT]
#
# PHOTOS is a folder of photos without labels; ours were 1,000 of ImageNet, one of each class. BSDS500 is expected as
# described in datasets/README.md: photos in datasets/BSR, segments as written by datasets/prepare_bsds500.py, which is
# run here if they are missing. OUTPUT (default: output/zoo) receives all files. Takes about five hours on two cores.
#
# Every step continues where it was stopped. Seeds are in the configs: 1 for the backbone, 42 for the models. Numbers are
# equal on the same machine; on others they differ slightly, since floats are summed in another order.
set -euo pipefail

[ $# -ge 1 ] && [ -d "$1" ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
export OMP_NUM_THREADS=1
photos=$(realpath "$1") output=${2:-output/zoo}
cd "$(dirname "$0")/.."
mkdir -p "$output"
output=$(realpath "$output")
python=${PYTHON:-.venv/bin/python}
bsds=datasets/BSR/BSDS500/data/images
segments=datasets/entities/bsds500

for split in train val; do
    [ -f "${segments}_$split.json" ] || $python datasets/prepare_bsds500.py --split $split
done

echo "== The backbone: its best near AUC, 0.781, is after 1,800 iterations =="
$python tools/pretrain_backbone.py --config-file configs/pretraining/vit_mini8_cpu.yaml --resume \
    --output "$output/backbone" --images "$photos" $bsds/train $bsds/val \
    --check-json ${segments}_train.json --check-images $bsds/train
weights=$output/backbone/backbone_best.safetensors

echo "== Phase 1 on the validation photos =="
$python tools/generate_pseudo_labels.py --images $bsds/val --output "$output/color_texture/labels.json" --resume \
    --config-file configs/exploration/color_texture.yaml
$python tools/generate_pseudo_labels.py --images $bsds/val --output "$output/joint/labels.json" --resume \
    --config-file configs/exploration/joint.yaml --weights "$weights"
$python tools/evaluate_json.py --gt ${segments}_val.json --pred "$output/color_texture/labels.json"
$python tools/evaluate_json.py --gt ${segments}_val.json --pred "$output/joint/labels.json"

echo "== Labels of 600 photos, for training =="
mkdir -p "$output/photos"
find "$(realpath $bsds/train)" -name '*.jpg' | LC_ALL=C sort > "$output/photos/list.txt"
find "$photos" -name '*.jpg' | LC_ALL=C sort | sed -n 1,400p >> "$output/photos/list.txt"
$python tools/generate_pseudo_labels.py --images "$output/photos/list.txt" --output "$output/photos/labels.json" --resume \
    --config-file configs/exploration/joint.yaml --weights "$weights"

echo "== Phase 2, and its evaluation on the validation photos =="
$python tools/train_net.py --config-file configs/sohes_photos_cpu_instruction.yaml --num-gpus 0 --resume \
    DATASETS.REGISTER.photo_labels "$output/photos/labels.json, /" MODEL.VIT.WEIGHTS "$weights" \
    OUTPUT_DIR "$output/instruction"

echo "== Phase 3, and its evaluation =="
$python tools/train_net.py --config-file configs/sohes_photos_cpu_correction.yaml --num-gpus 0 --resume \
    DATASETS.REGISTER.photo_labels "$output/photos/labels.json, /" MODEL.VIT.WEIGHTS "$weights" \
    MODEL.WEIGHTS "$output/instruction/model_final.pth" OUTPUT_DIR "$output/correction"

echo "== Further training at more scales, and its evaluation =="
$python tools/train_net.py --config-file configs/sohes_photos_cpu_multiscale.yaml --num-gpus 0 --resume \
    DATASETS.REGISTER.photo_labels "$output/photos/labels.json, /" MODEL.VIT.WEIGHTS "$weights" \
    MODEL.WEIGHTS "$output/correction/model_final.pth" OUTPUT_DIR "$output/multiscale"

echo "== The same twice more, each from the last result =="
last=$output/multiscale
for again in 2 3; do
    $python tools/train_net.py --config-file configs/sohes_photos_cpu_multiscale.yaml --num-gpus 0 --resume \
        DATASETS.REGISTER.photo_labels "$output/photos/labels.json, /" MODEL.VIT.WEIGHTS "$weights" \
        MODEL.WEIGHTS "$last/model_final.pth" OUTPUT_DIR "$output/multiscale_$again" SOLVER.MAX_ITER 2000
    last=$output/multiscale_$again
done

echo "== The model as it comes with the package =="
$python tools/export_model.py "$last/model_final.pth" --half --output "$output/model"

echo "== Its scores, calibrated without labels on photos that it did not see: the value of TEST.SCORE_CALIBRATION =="
$python tools/calibrate_scores.py --images "$photos" --first 400 --photos 30 --model "$output/model"
