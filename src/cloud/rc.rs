//! What a person needs to look for himself: an RC file and a clouds.yaml (S4.3).
//!
//! Both carry the password, so the text is a [`Secret`]: whoever writes it makes the file 0600.

use super::session::Credentials;
use super::url::Url;
use crate::secret::Secret;

/// A file for `source`: the same variables as the one that Horizon hands out.
pub fn rc_file(auth_url: &Url, region: &str, who: &Credentials) -> Secret {
    let auth_url = auth_url.versioned("v3").to_string();
    let variables = [
        ("OS_AUTH_URL", auth_url.as_str()),
        ("OS_PROJECT_NAME", &who.project),
        ("OS_PROJECT_DOMAIN_NAME", &who.domain),
        ("OS_USERNAME", &who.user),
        ("OS_USER_DOMAIN_NAME", &who.domain),
        ("OS_PASSWORD", who.password.reveal()),
        ("OS_REGION_NAME", region),
        ("OS_INTERFACE", "public"),
        ("OS_IDENTITY_API_VERSION", "3"),
    ];
    let mut text = String::from(
        "# Written by stackproof: `source` it, then use the `openstack` command.\n\
         # Variables of another cloud would change or break the login: all OS_* are unset.\n",
    );
    text += UNSET_ALL;
    for (name, value) in variables {
        text += &format!("export {name}={}\n", shell_quoted(value));
    }
    text += &format!("PS1={}\n", shell_quoted(&format!("[\\u@\\h \\W({})]\\$ ", who.user)));
    Secret::new(text)
}

/// One `clouds.yaml` for all `users`, each under its own name.
pub fn clouds_yaml(auth_url: &Url, region: &str, users: &[(&str, &Credentials)]) -> Secret {
    let auth_url = auth_url.versioned("v3").to_string();
    let mut text = String::from("# Written by stackproof.\nclouds:\n");
    for (name, who) in users {
        text += &format!(
            "  {}:\n    auth:\n      auth_url: {}\n      username: {}\n      password: {}\n      \
             project_name: {}\n      user_domain_name: {domain}\n      project_domain_name: \
             {domain}\n    region_name: {}\n    interface: public\n    identity_api_version: 3\n",
            yaml_quoted(name),
            yaml_quoted(&auth_url),
            yaml_quoted(&who.user),
            yaml_quoted(who.password.reveal()),
            yaml_quoted(&who.project),
            yaml_quoted(region),
            domain = yaml_quoted(&who.domain),
        );
    }
    Secret::new(text)
}

/// Works in sh, bash, ksh and zsh, under `set -eu` too.
pub const UNSET_ALL: &str = "for os_name in \
    $(env | sed -n 's/^\\(OS_[A-Za-z0-9_]*\\)=.*/\\1/p'); do unset \"$os_name\"; done\n\
    unset os_name\n";

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A JSON string is a YAML string too.
fn yaml_quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The first line of every file that this module writes begins so.
const WRITTEN: &str = "# Written by stackproof";

/// Whether the file with these contents is one of ours, which may be replaced.
pub fn is_ours(contents: &[u8]) -> bool {
    contents.starts_with(WRITTEN.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_another_cloud_are_unset() {
        let url = Url::parse("http://h:5000").unwrap();
        let rc = rc_file(&url, "RegionOne", &who());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("openrc");
        std::fs::write(&file, rc.reveal()).unwrap();
        for shell in ["sh", "bash"] {
            let script = "set -eu; . \"$0\"; env | sed -n 's/^\\(OS_[^=]*\\)=.*/\\1/p' | sort";
            let mut command = std::process::Command::new(shell);
            command.args(["-c", script]).arg(&file);
            for name in [
                "OS_PROJECT_ID",
                "OS_DOMAIN_ID",
                "OS_AUTH_TYPE",
                "OS_APPLICATION_CREDENTIAL_ID",
                "OS_CACERT",
                "OS_TENANT_NAME",
                "OS_TRUST_ID",
                "OS_CLOUD",
                "OS_COMPUTE_API_VERSION",
            ] {
                command.env(name, "dead\nOS_NONE=x");
            }
            let out = command.output().unwrap();
            let left = String::from_utf8_lossy(&out.stdout).into_owned();
            let wanted = "OS_AUTH_URL OS_IDENTITY_API_VERSION OS_INTERFACE OS_PASSWORD \
                          OS_PROJECT_DOMAIN_NAME OS_PROJECT_NAME OS_REGION_NAME \
                          OS_USERNAME OS_USER_DOMAIN_NAME";
            let left: Vec<&str> = left.lines().collect();
            let error = String::from_utf8_lossy(&out.stderr);
            assert_eq!(left.join(" "), wanted, "{shell}: {error}");
        }
    }

    #[test]
    fn only_files_written_here_are_ours() {
        let url = Url::parse("http://h:5000").unwrap();
        assert!(is_ours(rc_file(&url, "r", &who()).reveal().as_bytes()));
        assert!(is_ours(clouds_yaml(&url, "r", &[]).reveal().as_bytes()));
        assert!(!is_ours(b"clouds:\n  production:\n"));
        assert!(!is_ours(b""));
    }

    fn who() -> Credentials {
        Credentials {
            user: "demo".into(),
            password: Secret::new("it's \"quoted\" $HOME"),
            project: "demo".into(),
            domain: "Default".into(),
        }
    }

    #[test]
    fn an_rc_file_gives_a_shell_exactly_the_values() {
        let url = Url::parse("http://192.168.103.11:5000").unwrap();
        let rc = rc_file(&url, "RegionOne", &who());
        let out = std::process::Command::new("sh")
            .arg("-c")
            .arg("set -eu; . /dev/stdin; printf '%s|%s' \"$OS_AUTH_URL\" \"$OS_PASSWORD\"")
            .stdin({
                use std::io::{Seek, Write};
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(rc.reveal().as_bytes()).unwrap();
                file.rewind().unwrap();
                file
            })
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(out.stdout).unwrap(),
            "http://192.168.103.11:5000/v3|it's \"quoted\" $HOME"
        );
    }

    #[test]
    fn clouds_yaml_has_a_cloud_for_each_user_with_quoted_values() {
        let url = Url::parse("http://h:5000/v3").unwrap();
        let yaml = clouds_yaml(&url, "RegionOne", &[("admin", &who()), ("demo", &who())]);
        let text = yaml.reveal();
        assert_eq!(text.matches("auth_url: \"http://h:5000/v3\"\n").count(), 2);
        assert!(text.contains("      password: \"it's \\\"quoted\\\" $HOME\"\n"), "{text}");
        assert!(text.contains("\n  \"demo\":\n    auth:\n"));
        assert_eq!(format!("{yaml}"), "[secret]");
    }
}
