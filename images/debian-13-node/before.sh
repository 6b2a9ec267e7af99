# Runs when the essential packages are there and the others are not. $1: the root of the node.
set -eu
# Our own initramfs (after.sh) is a tenth of the size and starts in a tenth of the time.
printf 'do_symlinks = no\n' >"$1/etc/kernel-img.conf"
mkdir -p "$1/etc/locale.gen.d"
printf 'en_US.UTF-8 UTF-8\n' >"$1/etc/locale.gen"
