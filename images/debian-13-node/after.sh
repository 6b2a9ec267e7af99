# Runs when every package is installed. $1: the root of the node. MODULES: those of the initramfs.
set -eu
root=$1
inside() { chroot "$root" "$@"; }

# --- what starts at boot: this, and nothing else -------------------------------------------------
mkdir -p "$root/etc/systemd/system-preset" "$root/etc/systemd/user-preset"
cat >"$root/etc/systemd/system-preset/00-stackproof.preset" <<'EOF'
enable ssh.service
enable cloud-init-main.service
enable cloud-init-local.service
enable cloud-init-network.service
enable cloud-config.service
enable cloud-final.service
enable systemd-networkd.service
enable systemd-networkd.socket
enable qemu-guest-agent.service
disable *
EOF
echo 'disable *' >"$root/etc/systemd/user-preset/00-stackproof.preset"
inside systemctl preset-all
inside systemctl preset-all --global
# Where a package brings only a SysV script, systemd starts it by these links.
rm -f "$root"/etc/rc?.d/[SK]*
inside systemctl set-default multi-user.target
# Costs of a first boot that buy nothing here, and timers that would work in the middle of a test.
inside systemctl mask \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
	man-db.timer logrotate.timer e2scrub_reap.service ldconfig.service getty-static.service \
	systemd-hwdb-update.service systemd-journal-catalog-update.service systemd-update-done.service \
	systemd-networkd-wait-online.service systemd-network-generator.service \
	systemd-binfmt.service proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount \
	systemd-tpm2-setup.service systemd-tpm2-setup-early.service systemd-pcrmachine.service \
	systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-pstore.service \
	systemd-rfkill.service systemd-rfkill.socket sys-kernel-config.mount sys-fs-fuse-connections.mount \
	sys-kernel-debug.mount sys-kernel-tracing.mount apparmor.service modprobe@drm.service
mkdir -p "$root/etc/systemd/system-generators" "$root/etc/systemd/system/multi-user.target.wants"
for generator in cloud-init-generator systemd-gpt-auto-generator systemd-hibernate-resume-generator \
	systemd-cryptsetup-generator systemd-integritysetup-generator systemd-veritysetup-generator \
	systemd-bless-boot-generator systemd-tpm2-generator systemd-getty-generator; do
	ln -sf /dev/null "$root/etc/systemd/system-generators/$generator"
done
# What cloud-init's generator would find out at every boot.
ln -sf /usr/lib/systemd/system/cloud-init.target \
	"$root/etc/systemd/system/multi-user.target.wants/cloud-init.target"
# 90 s are not enough for nova-compute on an emulated processor.
mkdir -p "$root/etc/systemd/system.conf.d"
printf '[Manager]\nDefaultTimeoutStartSec=900s\nDefaultTimeoutStopSec=300s\n' \
	>"$root/etc/systemd/system.conf.d/stackproof.conf"

# --- configuration from the seed drive alone ------------------------------------------------------
cat >"$root/etc/cloud/cloud.cfg" <<'EOF'
# The whole of cloud-init's configuration: one source, and no module that no seed of ours uses.
datasource_list: [ NoCloud ]
datasource: { NoCloud: { fs_label: cidata } }
disable_root: true
ssh_pwauth: false
manage_etc_hosts: false
preserve_hostname: false
resize_rootfs: false
ssh_deletekeys: true
ssh_genkeytypes: []
cloud_init_modules: [ bootcmd, write_files, set_hostname, users_groups, ssh ]
cloud_config_modules: [ runcmd ]
cloud_final_modules: [ scripts_user ]
users: []
system_info: { distro: debian, network: { renderers: [ networkd ] } }
EOF
find "$root/etc/cloud/cloud.cfg.d" -type f ! -name 05_logging.cfg -delete
sed -i 's/level=DEBUG/level=INFO/; s/| tee -a/>>/' "$root/etc/cloud/cloud.cfg.d/05_logging.cfg"
mkdir -p "$root/usr/lib/stackproof" "$root/etc/systemd/system/cloud-init-main.service.d"
cat >"$root/usr/lib/stackproof/cloud-init" <<'EOF'
#!/usr/bin/python3 -I
"""cloud-init without the libraries that only its network sources and its checks of schemas use.

Everything here is configured from a local seed; under emulation, to import them takes longer than
all that cloud-init does.
"""
import sys
import types

for optional in ("jsonschema", "oauthlib"):
    sys.modules[optional] = None  # importing it raises ImportError, for which cloud-init is prepared

requests = types.ModuleType("requests")
requests.exceptions = types.ModuleType("requests.exceptions")
for error in ("RequestException", "HTTPError", "ConnectionError", "SSLError", "Timeout", "InvalidURL"):
    setattr(requests.exceptions, error, type(error, (OSError,), {}))
requests.Response = requests.Session = type("Absent", (), {})
sys.modules["requests"] = requests
sys.modules["requests.exceptions"] = requests.exceptions

sys.argv[0] = "cloud-init"
from cloudinit.cmd.main import main  # noqa: E402

sys.exit(main())
EOF
chmod 755 "$root/usr/lib/stackproof/cloud-init"
cat >"$root/etc/systemd/system/cloud-init-main.service.d/stackproof.conf" <<'EOF'
[Service]
ExecStart=
ExecStart=/usr/lib/stackproof/cloud-init --all-stages
EOF
# Of the three hundred devices that udev is shown at boot, those that a node has a use for.
mkdir -p "$root/etc/systemd/system/systemd-udev-trigger.service.d"
cat >"$root/etc/systemd/system/systemd-udev-trigger.service.d/stackproof.conf" <<'EOF'
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=all --action=add --prioritized-subsystem=virtio,block,net --subsystem-match=virtio --subsystem-match=block --subsystem-match=net --subsystem-match=misc --subsystem-match=virtio-ports --subsystem-match=acpi --subsystem-match=input --subsystem-match=module
EOF

printf 'LANG=en_US.UTF-8\n' >"$root/etc/default/locale"
[ -d "$root/usr/lib/locale/en_US.utf8" ] || inside locale-gen
printf '/dev/vda / ext4 noatime 0 0\n' >"$root/etc/fstab"

# --- the initramfs: the driver of the disk, then the disk -----------------------------------------
tree=$root/tmp/initramfs
mkdir -p "$tree/bin" "$tree/dev" "$tree/proc" "$tree/new"
cp "$root/usr/bin/busybox" "$tree/bin/busybox"
kernel=$(ls "$root/usr/lib/modules")
for module in $MODULES; do
	find "$root/usr/lib/modules/$kernel" -name "$module.ko.xz" -exec cp {} "$tree/$module.ko.xz" \;
	inside busybox unxz "/tmp/initramfs/$module.ko.xz"
	echo "\$b insmod /$module.ko" >>"$tree/load"
done
cat >"$tree/init" <<'EOF'
#!/bin/busybox sh
# There are no links to busybox here, and without /proc it does not find itself.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
. /load
read -r words </proc/cmdline
root=/dev/vda
for word in $words; do case $word in root=*) root=${word#root=} ;; esac; done
if ! $b mount -t ext4 -o noatime "$root" /new; then
	echo "initramfs: the root filesystem on $root cannot be mounted"
	$b poweroff -f
fi
$b mount -o move /dev /new/dev
$b umount /proc
exec $b switch_root /new /sbin/init
EOF
chmod 755 "$tree/init"
inside sh -c 'cd /tmp/initramfs && find . | busybox cpio -o -H newc' >"$root/boot/initrd" 2>/dev/null
rm -rf "$tree"
mv "$root/boot/vmlinuz-$kernel" "$root/boot/vmlinuz"
rm -f "$root"/boot/System.map* "$root"/boot/initrd.img*

# --- nothing that is an identity, and nothing that only the build needed --------------------------
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id" "$root/etc/hostname" \
	"$root/etc/resolv.conf" "$root/var/lib/rabbitmq/.erlang.cookie" \
	"$root/etc/iscsi/initiatorname.iscsi" "$root/etc/ssl/private/ssl-cert-snakeoil.key" \
	"$root"/etc/openvswitch/system-id.conf "$root"/var/lib/systemd/random-seed
# Empty, not absent: a new one is made at each first boot, without the rest of a "first boot".
: >"$root/etc/machine-id"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
inside apt-get clean
# A node has no route to a mirror, and the mirror of this build is nothing that an image should name.
rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/*.log \
	"$root/var/log/apt" "$root"/var/cache/debconf/*-old "$root"/tmp/* "$root"/root/.cache
# Newer than /usr: or else systemd takes the image for a new version of the system at its boot.
touch "$root/usr"
touch -d '+1 minute' "$root/etc/.updated" "$root/var/.updated"
