#!/usr/bin/env bash
# Get Pythons whose NumPy multiplies with another BLAS, and Pythons for 64-bit Arm under qemu-user,
# from Debian's packages and PyPI's wheels, without root, for scripts/prove_golden.py:
#
#     bash scripts/foreign_pythons.sh DIR
#     python scripts/prove_golden.py --only-others \
#         $(for python in DIR/python-*; do echo --interpreter "${python##*/}=$python"; done)
#
# DIR takes 1.1 GB. The script needs apt-get, dpkg-deb and Debian's archive keyring. It extracts packages
# into DIR, with their own C library, and installs nothing.
set -euo pipefail

mkdir -p "$1"
root=$(cd "$1" && pwd)
python=${PYTHON:-python3}
numpy=${NUMPY:-2.5.5} # of the wheel for Arm

# A private state for apt, so that neither root nor the machine's own lists are needed.
mkdir -p "$root"/apt/lists/partial "$root"/apt/cache/archives/partial
: >"$root/apt/status"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [arch=amd64,arm64 signed-by=$keyring] http://deb.debian.org/debian trixie main" \
    >"$root/apt/sources.list"
cat >"$root/apt/apt.conf" <<EOF
Dir::Etc::sourcelist "$root/apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "$root/apt";
Dir::State::status "$root/apt/status";
Dir::Cache "$root/apt/cache";
APT::Architectures { "amd64"; "arm64"; };
EOF
export APT_CONFIG=$root/apt/apt.conf
apt-get update -qq

# extract DIR ARCHITECTURE PACKAGE...: the packages alone
extract() {
    local place=$root/$1 options=(-o "APT::Architecture=$2" -o "APT::Architectures=$2")
    mkdir -p "$place"/debs "$place"/usr/{bin,lib,lib64}
    for name in bin lib lib64; do ln -sfn "usr/$name" "$place/$name"; done
    (cd "$place/debs" && apt-get "${options[@]}" download -qq "${@:3}")
    for package in "$place"/debs/*.deb; do dpkg-deb -x "$package" "$place"; done
    rm -r "$place/debs"
}

# with_dependencies ARCHITECTURE PACKAGE...: the names of all that they need
with_dependencies() {
    apt-get -o "APT::Architecture=$1" -o "APT::Architectures=$1" \
        install -s --no-install-recommends "${@:2}" | awk '/^Inst/ { print $2 }' |
        grep -vE '^(dpkg|tar|debconf|tzdata|gcc-[0-9]+-base)$'
}

for architecture in amd64 arm64; do
    # shellcheck disable=SC2046  # one word per package
    extract $architecture $architecture $(with_dependencies $architecture python3 python3-numpy) \
        libblis4-serial libopenblas0-serial
done
extract qemu amd64 qemu-user # is linked statically

# wheels DIR PLATFORM PACKAGE...: for Debian's Python 3.13, whatever this one is
wheels() {
    local platforms=()
    for version in 2014 _2_17 _2_27 _2_28; do platforms+=(--platform "manylinux${version}_$2"); done
    "$python" -m pip install -q --target "$root/$1" --only-binary=:all: --python-version 3.13 \
        --implementation cp --abi cp313 --abi abi3 --abi none "${platforms[@]}" "${@:3}"
}

wheels site-amd64 x86_64 --no-deps safetensors tokenizers
wheels site-arm64 aarch64 --no-deps safetensors tokenizers
wheels numpy-arm64 aarch64 --no-deps "numpy==$numpy"

# wrapper NAME ARCHITECTURE BLAS [PYTHONPATH]: a command that starts the interpreter
wrapper() {
    local system=$root/$2 triple loader emulator=
    case $2 in
    amd64) triple=x86_64-linux-gnu loader=lib64/ld-linux-x86-64.so.2 ;;
    arm64)
        triple=aarch64-linux-gnu loader=lib/ld-linux-aarch64.so.1
        emulator="$root/qemu/usr/bin/qemu-aarch64 -cpu neoverse-n1 -L $system"
        ;;
    esac
    local lib=$system/usr/lib/$triple
    cat >"$root/python-$1" <<EOF
#!/bin/sh
export PYTHONPATH=${4:+$4:}$root/site-$2
exec $emulator $system/$loader --library-path $lib/$3:$lib/lapack:$lib $system/usr/bin/python3.13 "\$@"
EOF
    chmod +x "$root/python-$1"
}

wrapper reference-blas amd64 blas
wrapper blis amd64 blis-serial
wrapper debian-openblas amd64 openblas-serial
wrapper arm64-reference-blas arm64 blas
wrapper arm64-blis arm64 blis-serial
wrapper arm64-openblas arm64 openblas-serial
wrapper arm64-wheel arm64 blas "$root/numpy-arm64"
# Byte code knows no architecture, and an emulated Python takes seconds to compile its own.
env -u PYTHONDONTWRITEBYTECODE "$root/python-blis" -m compileall -q \
    "$root"/{amd64,arm64}/usr/lib/python3{.13,/dist-packages} "$root"/site-* "$root/numpy-arm64" \
    >"$root/compileall.log" || true
