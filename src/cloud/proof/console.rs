//! What an instance's serial console says.

use crate::error::{Error, Kind, last_lines};
use std::net::Ipv4Addr;

/// How a kind of image shows on its console that it is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleStyle {
    /// Any one of these means that userland is up.
    pub up: Vec<String>,
    /// Whether address, default route and metadata route are printed too, as CirrOS does.
    pub tells_network: bool,
}

impl ConsoleStyle {
    /// CirrOS and what keeps its contract (probe-guest).
    pub fn cirros() -> Self {
        ConsoleStyle { up: vec!["login as 'cirros' user".into()], tells_network: true }
    }
    /// Any system with a login prompt or an SSH server.
    pub fn generic() -> Self {
        let up = [" login:", "OpenBSD Secure Shell server", "OpenSSH server daemon"];
        ConsoleStyle { up: up.map(str::to_owned).into(), tells_network: false }
    }
}

/// Lines after which nothing good can follow, and what each means.
const FATAL: &[(&str, &str)] = &[
    ("Kernel panic", "the guest's kernel panicked"),
    ("No bootable device", "the firmware found nothing to boot: the image is no disk image"),
    ("the disk cannot be read", "the boot loader's read of the disk failed"),
    ("not a bootable disk", "the firmware found nothing to boot: the image is no disk image"),
    ("grub rescue>", "the boot loader cannot find its files"),
    ("does not support x86-64-v", "the guest needs a newer CPU model than nova gives it"),
    ("Entering emergency mode", "the guest's init gave up"),
    ("failed 20/20: up", "the guest never reached the metadata service"),
];

/// The reason why waiting for this console is in vain, if there is one.
pub fn fatal(console: &str) -> Option<Error> {
    let (sign, meaning) = FATAL.iter().find(|(sign, _)| console.contains(sign))?;
    let line = console.lines().find(|l| l.contains(sign)).unwrap_or(sign);
    Some(
        Error::new(Kind::Proof, format!("{meaning}: `{}`", line.trim()))
            .evidence(last_lines(console, 12)),
    )
}

pub fn is_up(style: &ConsoleStyle, console: &str) -> bool {
    style.up.iter().any(|sign| console.contains(sign))
}

/// What the console should have shown and did not, in words.
pub fn missing(
    style: &ConsoleStyle,
    console: &str,
    fixed: Ipv4Addr,
    gateway: Ipv4Addr,
) -> Vec<String> {
    let mut missing = Vec::new();
    if style.tells_network {
        for (what, text) in [
            ("its address", fixed.to_string()),
            ("its default route", format!("default via {gateway}")),
            ("the metadata route", "169.254.169.254".to_owned()),
        ] {
            if !has_word(console, &text) {
                missing.push(format!("{what} (`{text}`)"));
            }
        }
    }
    if !is_up(style, console) {
        missing.push(format!("the login banner (`{}`)", style.up.join("` or `")));
    }
    missing
}

/// Whether `text` stands in `all`, not as a part of a longer number: 10.5.5.1 is not in 10.5.5.12.
fn has_word(all: &str, text: &str) -> bool {
    all.match_indices(text).any(|(at, _)| {
        let before = all[..at].chars().next_back();
        let after = all[at + text.len()..].chars().next();
        let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
        !digit(before) && !digit(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTED: &str = "\
=== network info ===
if-info: eth0,up,10.5.5.12,24,fe80::f816:3eff:fe00:1/64,
ip-route:default via 10.5.5.1 dev eth0
ip-route:169.254.169.254 via 10.5.5.1 dev eth0
=== cirros: current=0.6.2 uptime=9.21 ===
[    9.3] random: crng init done
login as 'cirros' user. default password: 'gocubsgo'. use 'sudo' for root.
cirros login: ";

    fn missing_in(console: &str, fixed: &str) -> Vec<String> {
        let gateway = "10.5.5.1".parse().unwrap();
        missing(&ConsoleStyle::cirros(), console, fixed.parse().unwrap(), gateway)
    }

    #[test]
    fn a_booted_cirros_shows_everything() {
        assert_eq!(missing_in(BOOTED, "10.5.5.12"), Vec::<String>::new());
        assert!(is_up(&ConsoleStyle::generic(), BOOTED));
        assert!(fatal(BOOTED).is_none());
    }

    #[test]
    fn a_longer_number_is_not_the_address() {
        assert_eq!(
            missing_in(BOOTED, "10.5.5.1").len(),
            0,
            "the gateway's own address stands there"
        );
        assert_eq!(missing_in(BOOTED, "10.5.5.2"), ["its address (`10.5.5.2`)"]);
        assert_eq!(missing_in(&BOOTED.replace("10.5.5.12", "10.5.5.123"), "10.5.5.12").len(), 1);
    }

    #[test]
    fn what_is_missing_is_named() {
        let console = BOOTED.replace("login as", "").replace("default via", "");
        assert_eq!(
            missing_in(&console, "10.5.5.12"),
            [
                "its default route (`default via 10.5.5.1`)",
                "the login banner (`login as 'cirros' user`)"
            ]
        );
    }

    #[test]
    fn a_hopeless_console_is_recognised_with_its_line() {
        let e = fatal("SeaBIOS\nBooting from Hard Disk...\nNo bootable device.\n").unwrap();
        assert!(e.to_string().contains("the image is no disk image: `No bootable device.`"), "{e}");
        assert_eq!(e.evidence_lines().len(), 3);
        assert!(fatal("[ 1.2] Kernel panic - not syncing: VFS").is_some());
        assert!(fatal("failed 3/20: up 20.00. request failed").is_none());
        assert!(fatal("failed 20/20: up 80.00. request failed").is_some());
    }
}
