#!/bin/sh
# Lays out the file system of pgweir's image: the program, the libraries it names, its user, and nothing else: no shell, no
# package manager.   make-image.sh BINARY DIRECTORY
set -eu

binary=$1
root=$2

umask 022
mkdir -p "$root/usr/local/bin" "$root/etc/pgweir" "$root/var/lib"
cp "$binary" "$root/usr/local/bin/pgweir"
chmod 0755 "$root/usr/local/bin/pgweir"
# Lines for backtraces are four fifths of it.
strip "$root/usr/local/bin/pgweir"

# A library as `name => /path (address)`, the loader as `/path (address)`.
ldd "$root/usr/local/bin/pgweir" | sed -n 's|^[^/]*\(/[^ ]*\) (0x.*|\1|p' | while read -r file; do
    cp -L --parents "$file" "$root"
done

# A fixed number, so that volumes and secrets can be given to it.
printf 'root:x:0:0::/:/sbin/nologin\npgweir:x:10001:10001::/var/lib/pgweir:/sbin/nologin\n' > "$root/etc/passwd"
printf 'root:x:0:\npgweir:x:10001:\n' > "$root/etc/group"
printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
