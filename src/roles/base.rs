//! What every node has before any service: names, clock, shell, logins (S1.1, S1.6, S1.8, S1.9,
//! S2.5), and no service that it does not own.

use super::context::{Context, Follows, on, resources};
use super::topology::{Host, Role};
use super::units;
use crate::engine::plan::Step;
use crate::engine::resources::{
    Block, Directory, File, Hostname, Hosts, Lines, Locale, Masked, Unit,
};

pub const PACKAGES: &[&str] =
    &["chrony", "openssh-server", "locales", "sudo", "iproute2", "tcpdump"];

const CHRONY_CONF: &str = "/etc/chrony/chrony.conf";
const KNOWN_HOSTS: &str = "/etc/ssh/ssh_known_hosts";
const SSHD_CONF: &str = "/etc/ssh/sshd_config.d/00-stackproof.conf";

pub const PROFILE_LOCALE: &str = "en_US.utf-8";

/// S1.6: the same for every user who logs in.
const PROFILE: &str = r#"export LANG=en_US.utf-8
export LC_ALL=en_US.utf-8
if [ "${BASH-}" ]; then
    PS1='\[\e[01;32m\]\u@\h\[\e[00m\]:\[\e[01;34m\]\w\[\e[00m\]\$ '
    if command -v vim >/dev/null; then alias vi=vim; fi
fi
"#;

/// S1.8. Debian's sshd reads this directory first, and the first value wins.
const SSHD: &str = "\
PermitRootLogin no
AuthorizedKeysFile .ssh/authorized_keys
PermitEmptyPasswords no
PasswordAuthentication yes
GSSAPIAuthentication no
GSSAPICleanupCredentials no
UseDNS no
";

pub fn steps(cx: Context) -> Vec<Step> {
    cx.topology.hosts.iter().flat_map(|host| [base(cx, host), clock(cx, host)]).collect()
}

fn base(cx: Context, host: &Host) -> Step {
    let mut hosts = Hosts::new();
    for other in &cx.topology.hosts {
        hosts = hosts.entry(other.address, [other.name.clone()]);
    }
    let login = &cx.topology.login;
    let ssh_dir = format!("/home/{}/.ssh", login.user);
    let mut keys = Lines::new(format!("{ssh_dir}/authorized_keys"))
        .mode(0o600)
        .owner(&login.user, &login.user);
    for key in login.authorized_keys.iter().chain([&login.node_key.public]) {
        keys = keys.line(key);
    }
    let own = |name: &str| format!("{ssh_dir}/{name}");
    let known_hosts: String = cx
        .topology
        .hosts
        .iter()
        .map(|h| format!("{},{} {}\n", h.name, h.address, h.host_key))
        .collect();
    cx.step(
        "base",
        host,
        resources![
            Hostname::new(&host.name),
            hosts,
            // Before anything is started: units drag in what they want, owned or not.
            Masked::new(units::not_owned_by(&host.roles)),
            Locale::new("en_US.UTF-8"),
            Block::new("/etc/profile", "stackproof", PROFILE),
            File::new(SSHD_CONF, SSHD).mode(0o644).owner("root", "root"),
            Unit::new("ssh").reads([SSHD_CONF]),
            Directory::new(&ssh_dir).mode(0o700).owner(&login.user, &login.user),
            keys,
            File::secret(own("id_ed25519"), login.node_key.private.reveal())
                .mode(0o600)
                .owner(&login.user, &login.user),
            File::new(own("id_ed25519.pub"), format!("{}\n", login.node_key.public))
                .mode(0o600)
                .owner(&login.user, &login.user),
            // Pinned: nothing is trusted on first use.
            File::new(KNOWN_HOSTS, known_hosts).mode(0o644).owner("root", "root"),
        ],
    )
}

/// S2.5: the controller follows the world outside, all others follow the controller.
fn clock(cx: Context, host: &Host) -> Step {
    let upstream = if host.has(Role::Controller) {
        format!("server {} iburst\nallow {}\n", cx.topology.ntp_upstream, cx.topology.ntp_allow)
    } else {
        format!("server {} iburst\n", cx.controller().name)
    };
    let conf = format!(
        "{upstream}driftfile /var/lib/chrony/drift\nmakestep 1.0 3\nrtcsync\nlogdir /var/log/chrony\n"
    );
    let step = cx.step(
        "clock",
        host,
        resources![
            File::new(CHRONY_CONF, conf).mode(0o644).owner("root", "root"),
            Unit::new("chrony").reads([CHRONY_CONF]),
        ],
    );
    if host.has(Role::Controller) {
        step.follows([on("base", host)])
    } else {
        // A client that starts before its server waits a whole polling interval for it.
        step.follows([on("base", host), on("clock", cx.controller())])
    }
}
