//! What the instance itself sees, asked in one go over SSH.
//!
//! The questions are plain POSIX shell with a choice of tools, so that CirrOS, a busybox and a
//! general-purpose system all can answer.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// More than any packet: an answer of this size arrives only if large packets do.
pub const BULK: usize = 64 << 10;

const MARK: &str = "@@stackproof ";

/// Identity of the boot only.
pub const WHO: &str = "printf '@@stackproof boot\\n'; cat /proc/sys/kernel/random/boot_id
printf '@@stackproof uptime\\n'; cat /proc/uptime
printf '@@stackproof end\\n'";

/// All questions. What takes long (three pings a second apart, and what metadata has to look up) is
/// under way at once and told at the end.
pub fn questions(gateway: Ipv4Addr, dhcp: Ipv4Addr) -> String {
    format!(
        r#"{BESIDE}
{SAME}
later gateway echo3 {gateway}
later dhcp echo3 {dhcp}
later local-ipv4 fetch latest/meta-data/local-ipv4
later instance-id fetch latest/meta-data/instance-id
say route; ip route 2>/dev/null || busybox ip route
say bulk; head -c {BULK} /dev/zero | tr '\0' x
wait
say pings; cat "$kept/gateway" "$kept/dhcp"
tell local-ipv4
tell instance-id
{END}"#
    )
}

/// What tells whether the same instance came back whole from a reboot.
pub fn questions_after_reboot() -> String {
    format!("{BESIDE}\n{SAME}\nwait\n{END}")
}

/// For scripts whose answers [`Answers`] reads, with a folder `$kept` of their own: `later NAME COMMAND`
/// has something run beside the rest, and `tell NAME`, after `wait`, says what it said.
pub const BESIDE: &str = r#"say() { printf '\n@@stackproof %s\n' "$1"; }
later() { into=$kept/$1; shift; "$@" >"$into" 2>&1 & }
tell() { say "$1"; cat "$kept/$1"; }"#;

/// Asked before a reboot and after it.
const SAME: &str = r#"export PATH="$PATH:/sbin:/usr/sbin:/bin:/usr/bin"
kept=$(mktemp -d) || exit
# A busybox that is not setuid pings as root only.
echo3() { ping -c 3 "$1" 2>&1 || sudo -n ping -c 3 "$1" 2>&1; }
fetch() {
  wget -q -T 60 -O - "http://169.254.169.254/$1" 2>/dev/null ||
  curl -s -f -m 60 "http://169.254.169.254/$1" 2>/dev/null ||
  busybox wget -q -T 60 -O - "http://169.254.169.254/$1" 2>/dev/null
}
later user-data fetch latest/user-data
later meta-data fetch openstack/latest/meta_data.json
say boot; cat /proc/sys/kernel/random/boot_id
say uptime; cat /proc/uptime
say address; ip addr 2>/dev/null || busybox ip addr"#;

/// Once all has come.
const END: &str = r#"tell user-data
tell meta-data
rm -r "$kept"
say end
"#;

/// The answers, by question.
#[derive(Clone, Debug, Default)]
pub struct Answers(BTreeMap<String, String>);

impl Answers {
    /// None where the answers broke off.
    pub fn read(stdout: &str) -> Option<Answers> {
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        let mut current = None;
        for line in stdout.lines() {
            if let Some(question) = line.strip_prefix(MARK) {
                current = Some(question.trim().to_owned());
                all.insert(question.trim().to_owned(), String::new());
            } else if let Some(question) = &current {
                let answer = all.get_mut(question).expect("inserted with its mark");
                answer.push_str(line);
                answer.push('\n');
            }
        }
        all.contains_key("end").then_some(Answers(all))
    }

    pub fn get(&self, question: &str) -> &str {
        self.0.get(question).map_or("", |a| a.trim())
    }

    pub fn boot_id(&self) -> &str {
        self.get("boot")
    }

    /// Seconds since the guest's boot.
    pub fn uptime(&self) -> Option<f64> {
        self.get("uptime").split_whitespace().next()?.parse().ok()
    }

    /// The MTU of the interface that has this address.
    pub fn mtu_of(&self, address: Ipv4Addr) -> Option<u32> {
        let mut mtu = None;
        for line in self.get("address").lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let Some(at) = words.iter().position(|w| *w == "mtu") {
                mtu = words.get(at + 1).and_then(|m| m.parse().ok());
            }
            if let ["inet", with_prefix, ..] = words[..]
                && with_prefix.split('/').next() == Some(&address.to_string())
            {
                return mtu;
            }
        }
        None
    }

    pub fn has_default_route(&self, gateway: Ipv4Addr) -> bool {
        let wanted = gateway.to_string();
        self.get("route").lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            matches!(words[..], ["default", "via", via, ..] if via == wanted)
        })
    }

    /// How many of the pings told under `question` were answered by `whom`.
    pub fn pings_answered(&self, question: &str, whom: Ipv4Addr) -> usize {
        let whom = whom.to_string();
        let of_address = |c: char| c.is_ascii_digit() || c == '.';
        let is_answer = |line: &&str| {
            line.contains("bytes from")
                && line.contains("time")
                && line.split(|c| !of_address(c)).any(|word| word == whom)
        };
        self.get(question).lines().filter(is_answer).count()
    }

    pub fn has_bulk(&self) -> bool {
        self.get("bulk").len() == BULK && self.get("bulk").bytes().all(|b| b == b'x')
    }

    /// Which sources returned the nonce.
    pub fn sources_of(&self, nonce: &str) -> Vec<&'static str> {
        let mut sources = Vec::new();
        if self.get("user-data").contains(nonce) {
            sources.push("user-data");
        }
        if let Ok(json) = serde_json::from_str::<serde_json::Value>(self.get("meta-data"))
            && json["meta"]["nonce"] == nonce
        {
            sources.push("server metadata");
        }
        sources
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: &str = "
@@stackproof boot
0b2e
@@stackproof uptime
12.34 5.00
@@stackproof address
1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN
    inet 127.0.0.1/8 scope host lo
2: eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc pfifo_fast qlen 1000
    link/ether fa:16:3e:00:00:01 brd ff:ff:ff:ff:ff:ff
    inet 10.5.5.12/24 brd 10.5.5.255 scope global eth0
@@stackproof route
default via 10.5.5.1 dev eth0
169.254.169.254 via 10.5.5.1 dev eth0
@@stackproof pings
PING 10.5.5.1 (10.5.5.1): 56 data bytes
PING 10.5.5.10 (10.5.5.10): 56 data bytes
64 bytes from 10.5.5.1: seq=0 ttl=64 time=1.2 ms
64 bytes from port.example (10.5.5.10): icmp_seq=1 ttl=64 time=1.2 ms
64 bytes from 10.5.5.1: seq=1 ttl=64 time=1.2 ms
@@stackproof meta-data
{\"meta\": {\"nonce\": \"abc\"}}
@@stackproof end
";

    #[test]
    fn the_answers_are_read() {
        let a = Answers::read(SEEN).unwrap();
        assert_eq!((a.boot_id(), a.uptime()), ("0b2e", Some(12.34)));
        assert_eq!(a.mtu_of(Ipv4Addr::new(10, 5, 5, 12)), Some(1450));
        assert_eq!(a.mtu_of(Ipv4Addr::new(10, 5, 5, 1)), None);
        assert!(a.has_default_route(Ipv4Addr::new(10, 5, 5, 1)));
        assert!(!a.has_default_route(Ipv4Addr::new(10, 5, 5, 2)));
        let pings = |last| a.pings_answered("pings", Ipv4Addr::new(10, 5, 5, last));
        assert_eq!((pings(1), pings(10), pings(0)), (2, 1, 0));
        assert_eq!(a.sources_of("abc"), ["server metadata"]);
        assert!(a.sources_of("ab").is_empty());
        assert!(!a.has_bulk());
    }

    #[test]
    fn answers_that_break_off_are_no_answers() {
        assert!(Answers::read(SEEN.split("@@stackproof end").next().unwrap()).is_none());
    }

    /// The very script, run by the shell of this machine: the fetches fail (nothing serves
    /// metadata here), the rest must answer.
    #[test]
    fn a_real_shell_answers_the_questions() {
        let script = questions(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST)
            .replace("http://169.254.169.254/", "http://127.0.0.1:1/");
        let kept = tempfile::tempdir().unwrap();
        let mut sh = std::process::Command::new("sh");
        let out = sh.arg("-c").arg(script).env("TMPDIR", kept.path()).output().unwrap();
        let a = Answers::read(&String::from_utf8_lossy(&out.stdout)).unwrap();
        assert!(a.has_bulk());
        let told: Vec<&str> = a.0.keys().map(String::as_str).collect();
        let all = ["address", "boot", "bulk", "end", "instance-id", "local-ipv4", "meta-data"];
        assert_eq!(told[..7], all);
        assert_eq!(told[7..], ["pings", "route", "uptime", "user-data"]);
        let left = std::fs::read_dir(kept.path()).unwrap().count();
        assert_eq!(left, 0, "nothing is left in the guest");
        assert_eq!(a.boot_id().len(), 36);
        assert!(a.uptime().unwrap() > 0.0);
        let out = std::process::Command::new("sh").arg("-c").arg(WHO).output().unwrap();
        let who = Answers::read(&String::from_utf8_lossy(&out.stdout)).unwrap();
        assert_eq!(who.boot_id(), a.boot_id());
    }
}
