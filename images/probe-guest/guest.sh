# Functions of /etc/boot. Nothing is printed but what the reader of a console wants.

hostname= own_disks=0 metadata=auto user=cirros instance_id= asked=
mac_of() { read -r mac <"/sys/class/net/$1/address"; }
up() { read -r up _ </proc/uptime; }
set_hostname() {
	echo "$1" >/proc/sys/kernel/hostname
	echo "$1" >/etc/hostname
	printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$1" >/etc/hosts
}

read_cmdline() {
	read -r cmdline </proc/cmdline
	for word in $cmdline; do
		case $word in
		probe.boot=disk) own_disks=1 ;;
		probe.hostname=*) hostname=${word#*=} ;;
		probe.key=*) echo "${word#*=}" | base64 -d >>/run/authorized_keys ;;
		probe.ip=*@*)
			word=${word#*=}
			echo "address ${word#*@} ${word%@*}" >>/run/network
			;;
		probe.gateway=*) echo "gateway ${word#*=}" >>/run/network ;;
		probe.metadata=*) metadata=${word#*=} ;;
		esac
	done
}

# A seed is a volume with a file probe.env (SEED.md). Its drivers are loaded only where there is a
# disk that the guest did not boot from.
read_seed() {
	disks=0
	for id in /sys/bus/pci/devices/*/device; do
		read -r id <"$id"
		case $id in 0x1001 | 0x1042) disks=$((disks + 1)) ;; esac
	done
	[ $disks -gt $own_disks ] || return 0
	for m in virtio_blk fat nls_cp437 nls_ascii vfat; do insmod /lib/modules/$m.ko; done
	for disk in /sys/class/block/*; do
		mount -t vfat -o ro "/dev/${disk##*/}" /mnt 2>/dev/null || continue
		[ -e /mnt/probe.env ] && read_env && umount /mnt && return 0
		umount /mnt
	done
}

# One word and its arguments a line; never evaluated by the shell.
read_env() {
	while read -r word rest; do
		case $word in
		hostname) hostname=$rest ;;
		instance-id) instance_id=$rest ;;
		user) user=$rest ;;
		metadata) metadata=$rest ;;
		authorized-key) echo "$rest" >>/run/authorized_keys ;;
		address | dhcp | mtu | name | gateway | dns) echo "$word $rest" >>/run/network ;;
		esac
	done </mnt/probe.env
	[ ! -e /mnt/hostkey ] || dropbearconvert openssh dropbear /mnt/hostkey /run/hostkey 2>/dev/null
	[ ! -e /mnt/user-data ] || cat /mnt/user-data >/run/user-data
}

# A host key that was given is the only one; otherwise new ones, one of a type that everyone knows.
make_hostkeys() {
	if [ -s /run/hostkey ]; then
		ln -s /run/hostkey /etc/dropbear/dropbear_ed25519_host_key
	else
		for type in ed25519 ecdsa; do
			dropbearkey -t $type -f /etc/dropbear/dropbear_${type}_host_key >/dev/null 2>&1
		done
	fi
}

# Interfaces of a written network get what is written for their MAC, and no address if nothing is.
# Without one, every interface asks by DHCP.
configure_network() {
	ip link set lo up
	for nic in /sys/class/net/eth*; do
		nic=${nic##*/}
		if [ -e /run/network ]; then
			mac_of "$nic"
			static "$nic" "$mac"
		else
			ip link set "$nic" up
			dhcp "$nic"
		fi
	done
	[ -e /run/network ] || return 0
	while read -r word rest; do
		case $word in
		gateway) ip route add default via "$rest" ;;
		dns) echo "nameserver $rest" >>/etc/resolv.conf ;;
		esac
	done </run/network
}

static() {
	nic=$1
	while read -r word mac value; do
		[ "$mac" = "$2" ] || continue
		case $word in
		name) ip link set "$nic" name "$value" && nic=$value ;;
		mtu) ip link set "$nic" mtu "$value" ;;
		address) ip addr add "$value" dev "$nic" ;;
		dhcp) ip link set "$nic" up && dhcp "$nic" ;;
		esac
	done </run/network
	ip link set "$nic" up
}

# Asks for ever: in a cloud under emulation the server may come minutes after the guest.
dhcp() {
	udhcpc -b -i "$1" -t 5 -T 2 -A 2 -s /etc/lease -x "hostname:${hostname:-probe-guest}" \
		-o -O subnet -O router -O dns -O hostname -O mtu -O staticroutes -O msstaticroutes \
		>/dev/null 2>&1 </dev/null &
	asked=yes
}

# Until the first lease; a minute later the start goes on without one.
wait_for_lease() {
	[ -z "$asked" ] || read -r -t 60 nic <&3 || echo "no lease after 60 s, still asking"
}

fetch() { wget -q -T 10 -O - "http://169.254.169.254/2009-04-04/$1" 2>/dev/null; }

# CirrOS's contract: 20 tries, 2 s apart, an instance id that begins with i-.
read_metadata() {
	echo "checking http://169.254.169.254/2009-04-04/meta-data/instance-id"
	try=0
	while [ $try -lt 20 ]; do
		try=$((try + 1))
		instance_id=$(fetch meta-data/instance-id)
		up
		case $instance_id in
		i-*)
			echo "successful after $try/20 tries: up $up. iid=$instance_id"
			break
			;;
		'') echo "failed $try/20: up $up. request failed" ;;
		*) echo "failed $try/20: up $up. not an instance id: '$instance_id'" ;;
		esac
		instance_id=
		sleep 2
	done
	if [ -z "$instance_id" ]; then
		echo "failed to read iid from metadata. tried 20"
		return 0
	fi
	fetch meta-data/public-keys/0/openssh-key >>/run/authorized_keys
	name=$(fetch meta-data/local-hostname)
	[ -z "$name" ] || hostname=${name%%.*}
	fetch user-data >/run/user-data || rm -f /run/user-data
}

install_user() {
	[ "$user" = cirros ] || sed -i "s/^cirros:/$user:/" /etc/passwd /etc/group
	cat /run/authorized_keys >/home/cirros/.ssh/authorized_keys 2>/dev/null
	chown -R 1000:1000 /home/cirros
}

report() {
	for nic in /sys/class/net/*; do
		nic=${nic##*/}
		[ "$nic" = lo ] || ip -o -4 addr show dev "$nic" | while read -r _ _ _ address _; do
			read -r mtu <"/sys/class/net/$nic/mtu"
			mac_of "$nic"
			echo "if-info: $nic,up,${address%/*},${address#*/},mtu=$mtu,$mac"
		done
	done
	ip route | while read -r route; do echo "ip-route:$route"; done
	up
	echo "=== probe-guest: current=$VERSION uptime=$up ==="
	echo "login as '$user' user with your key. use 'sudo' for root."
}

# After the banner, because no one waits for it: ACPI's power button shuts the guest down.
listen_for_power_button() {
	for m in evdev button; do insmod /lib/modules/$m.ko; done
	acpid
}

run_user_data() {
	[ -s /run/user-data ] || return 0
	read -r first </run/user-data
	case $first in
	'#!'*)
		chmod 700 /run/user-data
		/run/user-data </dev/null >/run/user-data.log 2>&1
		echo "user-data: exit status $?"
		;;
	esac
}
