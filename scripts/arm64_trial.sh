#!/usr/bin/env bash
# The edge on Linux arm64 without an ARM board: an arm64 Debian under user-mode emulation, the extra `edge` installed from
# the wheel that `make wheels` builds and from PyPI's arm64 wheels, against a server of this machine on loopback.
#
#     sudo scripts/arm64_trial.sh            (Debian: apt-get install qemu-user-static mmdebstrap arch-test)
#
# It checks the doctor, classify, run with a kill -9 in between, and packets byte for byte against this machine's. Its times
# are the emulator's and say nothing. The root filesystem and the installed extra stay in ~/.cache/thinwire/arm64 for the
# next run (--fresh makes them anew). Takes some ten minutes the first time, then two; each step has a limit.
set -euo pipefail
cd "$(dirname "$0")/.."
HOME_DIR=${THINWIRE_ARM64:-$HOME/.cache/thinwire/arm64}
ROOT=$HOME_DIR/root
ENV_DIR=$(make -s print-env)
BINFMT=/proc/sys/fs/binfmt_misc
SUITE=bookworm # Python 3.11

say() { echo "arm64_trial: $*" >&2; }

[ "$(id -u)" = 0 ] || { say "needs root, for chroot"; exit 2; }
for tool in qemu-aarch64-static mmdebstrap arch-test; do
    command -v $tool >/dev/null || { say "$tool is missing: apt-get install qemu-user-static mmdebstrap arch-test"; exit 2; }
done
[ "${1:-}" != --fresh ] || rm -rf "$ROOT"
mkdir -p "$HOME_DIR"
trap 'eval "$undo"' EXIT
undo=true # what this run changed on the machine, to be taken back at its end

# The kernel starts arm64 programs through the emulator; F: it is opened now, so that it need not be in the chroot.
[ -e $BINFMT/register ] || mount -t binfmt_misc binfmt_misc $BINFMT
if [ "$(uname -m)" != aarch64 ] && [ ! -e $BINFMT/qemu-aarch64 ]; then
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf ':qemu-aarch64:M::%s:%s:%s:F' "$magic" "$mask" "$(command -v qemu-aarch64-static)" >$BINFMT/register
    undo="$undo; echo -1 >$BINFMT/qemu-aarch64"
fi

if [ ! -e "$ROOT/.complete" ]; then
    say "an arm64 Debian with Python"
    rm -rf "$ROOT"
    timeout 1500 mmdebstrap --arch=arm64 --variant=apt --include=python3,python3-venv,ca-certificates \
        $SUITE "$ROOT" http://deb.debian.org/debian >&2
    touch "$ROOT/.complete"
fi
# ONNX Runtime counts cores in /sys and ends without it
for kind in proc sysfs; do
    place=$ROOT/${kind%fs}
    mountpoint -q "$place" || { mount -t $kind $kind "$place" && undo="$undo; umount $place"; }
done
cp /etc/resolv.conf "$ROOT/etc/resolv.conf"
cp /etc/ssl/certs/ca-certificates.crt "$ROOT/etc/ssl/certs/ca-certificates.crt"

say "the wheel for arm64"
rm -rf "$ROOT/opt/wheels"
PYTHONPATH=$PWD timeout 1200 "$ENV_DIR/bin/python" scripts/build_wheels.py \
    --targets manylinux-aarch64 --out "$ROOT/opt/wheels" | tail -1

PYTHONPATH=$PWD timeout 2400 "$ENV_DIR/bin/python" scripts/arm64_trial.py "$ROOT"
