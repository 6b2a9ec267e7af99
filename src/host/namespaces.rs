//! Whether image builds can have namespaces of their own: tried, because no file says so.

use super::tool::Tool;
use crate::error::Error;
use std::path::Path;

/// A user namespace for a build maps this many ids; an entry in /etc/subuid is this long by default.
const SUBORDINATE_IDS: u64 = 65536;

/// What keeps builds apart does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFault {
    /// The last words of the tool that was tried.
    pub reason: String,
    pub remedy: String,
}

/// The namespaces that the image builder of root asks for.
pub const ROOT_NAMESPACES: [&str; 5] =
    ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Makes the namespaces of a build once, as root with `unshare`, else as mmdebstrap does.
pub async fn try_namespaces(root: bool) -> Result<(), NamespaceFault> {
    if root {
        let tried = Tool::new("unshare").args(ROOT_NAMESPACES).arg("true").run(|_| {}).await;
        return tried.map_err(|e| NamespaceFault { reason: last_words(&e), remedy: capability() });
    }
    let tried = Tool::new("mmdebstrap").args(["--unshare-helper", "true"]).run(|_| {}).await;
    tried.map_err(|e| NamespaceFault { reason: last_words(&e), remedy: user_remedy() })
}

fn last_words(error: &Error) -> String {
    let said = error.evidence_lines().iter().rfind(|line| !line.trim().is_empty());
    said.map_or_else(|| error.to_string(), |line| line.trim().to_owned())
}

fn capability() -> String {
    "give this container the capability (docker run --cap-add SYS_ADMIN, or --privileged)".into()
}

fn user_remedy() -> String {
    let name = user_name().unwrap_or_else(|| "$USER".into());
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    remedy_of(&name, &text("/etc/subuid"), &text("/etc/subgid"))
}

/// Subordinate ids where they are missing, else the kernel's settings.
fn remedy_of(user: &str, subuid: &str, subgid: &str) -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let has_ids = |text: &str| text.lines().any(|line| has_entry(line, [user, &uid]));
    if has_ids(subuid) && has_ids(subgid) {
        return "allow user namespaces: sudo sysctl kernel.unprivileged_userns_clone=1 (Debian), \
                sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)"
            .into();
    }
    let first = first_free_id(subuid).max(first_free_id(subgid));
    let last = first + SUBORDINATE_IDS - 1;
    format!("sudo usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {user}")
}

/// As in `stack:100000:65536`.
fn has_entry(line: &str, names: [&str; 2]) -> bool {
    let mut fields = line.trim().split(':');
    let (name, _, count) = (fields.next(), fields.next(), fields.next());
    let enough = count.and_then(|c| c.parse().ok()).is_some_and(|c: u64| c >= SUBORDINATE_IDS);
    enough && names.into_iter().any(|n| Some(n) == name)
}

/// Beyond every range that is given away, and where useradd begins.
fn first_free_id(text: &str) -> u64 {
    let ends = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':').skip(1);
        let first: u64 = fields.next()?.parse().ok()?;
        Some(first + fields.next()?.parse::<u64>().ok()?)
    });
    ends.max().unwrap_or(0).max(100_000)
}

/// The name of the effective user, if /etc/passwd has it: a directory service's users are not there.
fn user_name() -> Option<String> {
    let uid = rustix::process::geteuid().as_raw();
    name_of_id(Path::new("/etc/passwd"), uid)
}

/// The name of a user (in /etc/passwd) or group (in /etc/group) by its number.
pub(super) fn name_of_id(file: &Path, id: u32) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let of_id = |line: &&str| line.split(':').nth(2).is_some_and(|n| n.parse() == Ok(id));
    text.lines().find(of_id)?.split(':').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_without_subordinate_ids_gets_the_command() {
        let other = "other:100000:65536\n";
        let wanted = "sudo usermod --add-subuids 165536-231071 --add-subgids 165536-231071 stack";
        assert_eq!(remedy_of("stack", other, ""), wanted);
        assert_eq!(remedy_of("stack", "stack:165536:65536\n", other), {
            "sudo usermod --add-subuids 231072-296607 --add-subgids 231072-296607 stack"
        });
        let short = "stack:100000:1000\n";
        assert!(remedy_of("stack", short, short).starts_with("sudo usermod"), "a range too short");
    }

    #[test]
    fn a_user_with_subordinate_ids_is_shown_the_kernel_settings() {
        let ids = "stack:100000:65536\n";
        assert!(remedy_of("stack", ids, ids).contains("unprivileged_userns"));
    }

    #[test]
    fn names_are_found_by_number() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "root:x:0:\nkvm:x:104:stack\n").unwrap();
        assert_eq!(name_of_id(file.path(), 104).as_deref(), Some("kvm"));
        assert_eq!(name_of_id(file.path(), 7), None);
    }
}
