#!/usr/bin/env bash
# Installs the distribution packages that Packtrain builds and runs with (Debian 12; Ubuntu 24.04 has
# the same names, untested there). Does nothing where they are all present. CUDA and NCCL are
# optional and come from NVIDIA's packages; nothing here installs them.
set -euo pipefail

packages=(
  build-essential cmake ninja-build ccache mold pkg-config
  libabsl-dev libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  libboost-dev libssl-dev nlohmann-json3-dev libspdlog-dev libyaml-cpp-dev libcli11-dev
  libpcre2-dev libhwloc-dev prometheus-cpp-dev
  libgtest-dev libgmock-dev libbenchmark-dev
  python3 python3-jinja2 python3-numpy curl iproute2
)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "installing: ${missing[*]}"
sudo=
[ "$(id -u)" -eq 0 ] || sudo=sudo
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}"
