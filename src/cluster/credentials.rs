//! The cloud on a lab, as those who use it need to know it. Goes with checkpoints as their note.

use crate::cloud::awake::Sleeper;
use crate::cloud::rc::{self, UNSET_ALL};
use crate::cloud::session::Credentials;
use crate::cloud::url::Url;
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::outbound::{LAB_PROXY, OUTER_NO_PROXY, OUTER_PROXY};
use crate::secret::{Redactor, Secret};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

/// Passwords travel in it over the lab's private socket and in its checkpoints (0600).
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Cloud {
    /// As nodes reach it: `http://openstack1:5000/v3`.
    pub auth_url: String,
    pub region: String,
    /// The first is whom the RC file is for.
    pub users: Vec<User>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    pub password: String,
    pub project: String,
    pub domain: String,
}

impl std::fmt::Debug for Cloud {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cloud").field("auth_url", &self.auth_url).finish_non_exhaustive()
    }
}

impl User {
    pub fn of(who: &Credentials) -> User {
        User {
            name: who.user.clone(),
            password: who.password.reveal().to_owned(),
            project: who.project.clone(),
            domain: who.domain.clone(),
        }
    }

    fn credentials(&self) -> Credentials {
        Credentials {
            user: self.name.clone(),
            password: Secret::new(self.password.as_str()),
            project: self.project.clone(),
            domain: self.domain.clone(),
        }
    }
}

impl Cloud {
    /// The `cloud` of a checkpoint's notes.
    pub fn of_notes(notes: &Value) -> Option<Cloud> {
        serde_json::from_value(notes.get("cloud")?.clone()).ok()
    }
    pub fn notes(cloud: Option<&Cloud>) -> Value {
        json!({ "cloud": cloud })
    }

    pub fn hide_in(&self, redactor: &Redactor) {
        self.users.iter().for_each(|u| redactor.add(&Secret::new(u.password.as_str())));
    }

    /// The way to it where it runs on `lab`, which has just been restored.
    pub fn asleep(&self, lab: &Lab) -> Result<Sleeper> {
        let first = self.users.first().ok_or_else(|| Error::internal("a cloud without a user"))?;
        let host = Url::parse(&self.auth_url)?.host;
        let controller = lab.node(&host).ok_or_else(|| {
            Error::lab(format!("the cloud's address is {}, and no node is {host}", self.auth_url))
        })?;
        let leg = lab.leg(&controller.login.0).ok_or_else(|| {
            Error::internal(format!("{host} is reached through a network without a leg"))
        })?;
        Ok(Sleeper {
            api: Arc::new(leg.clone()),
            names: lab.nodes().iter().map(|n| (n.name().to_owned(), n.login.1)).collect(),
            auth_url: self.auth_url.clone(),
            region: self.region.clone(),
            who: first.credentials(),
            death: lab.death(),
        })
    }

    /// An RC file whose shell reaches the lab through `proxy`, and a `clouds.yaml` for all users.
    pub fn files(&self, proxy: &Secret) -> Result<(Secret, Secret)> {
        let url = Url::parse(&self.auth_url)?;
        let first = self.users.first().ok_or_else(|| Error::internal("a cloud without a user"))?;
        let rc = rc::rc_file(&url, &self.region, &first.credentials());
        // The environment first: it keeps what `lab_off` gives back.
        let rc = format!("{}{}", environment(proxy).reveal(), rc.reveal());
        let all: Vec<(String, Credentials)> =
            self.users.iter().map(|u| (u.name.clone(), u.credentials())).collect();
        let all: Vec<(&str, &Credentials)> = all.iter().map(|(n, c)| (n.as_str(), c)).collect();
        Ok((Secret::new(rc), rc::clouds_yaml(&url, &self.region, &all)))
    }
}

/// Shell lines that send plain HTTP into the lab. The catalogue's addresses are the lab's: only
/// the owner's proxy reaches them. What the host has set against proxies would go around it.
///
/// The shell's own settings are kept: `lab_off` restores them, and stackproof's downloads use them
/// (see [`crate::outbound`]).
pub fn environment(proxy: &Secret) -> Secret {
    let proxy = proxy.reveal();
    let unset_all = UNSET_ALL.trim_end().replace('\n', "\n  ");
    Secret::new(format!(
        "# Written by stackproof. Sends this shell's plain HTTP into the lab's network, for as long as \
         the lab runs:\n\
         # downloads and other HTTP do not work meanwhile. `lab_off` takes the shell out again.\n\
         if [ -z \"${{{LAB_PROXY}-}}\" ]; then\n  \
         export {OUTER_PROXY}=\"${{http_proxy-}}\" {OUTER_NO_PROXY}=\"${{no_proxy-${{NO_PROXY-}}}}\"\n  \
         stackproof_outer_ps1=\"${{PS1-}}\"\n\
         fi\n\
         export {LAB_PROXY}='{proxy}'\n\
         export http_proxy='{proxy}' HTTP_PROXY='{proxy}'\n\
         export no_proxy='' NO_PROXY=''\n\
         lab_off() {{\n  \
         {unset_all}\n  \
         unset http_proxy HTTP_PROXY no_proxy NO_PROXY {LAB_PROXY}\n  \
         if [ -n \"${{{OUTER_PROXY}-}}\" ]; then\n    \
         export http_proxy=\"${OUTER_PROXY}\" HTTP_PROXY=\"${OUTER_PROXY}\"\n  \
         fi\n  \
         if [ -n \"${{{OUTER_NO_PROXY}-}}\" ]; then\n    \
         export no_proxy=\"${OUTER_NO_PROXY}\" NO_PROXY=\"${OUTER_NO_PROXY}\"\n  \
         fi\n  \
         PS1=\"${{stackproof_outer_ps1-}}\"\n  \
         unset {OUTER_PROXY} {OUTER_NO_PROXY} stackproof_outer_ps1\n\
         }}\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud() -> Cloud {
        let user = |name: &str| User {
            name: name.into(),
            password: format!("pw-of-{name}-0123"),
            project: name.into(),
            domain: "Default".into(),
        };
        Cloud {
            auth_url: "http://openstack1:5000/v3".into(),
            region: "RegionOne".into(),
            users: vec![user("admin"), user("demo")],
        }
    }

    #[test]
    fn the_rc_file_gives_a_shell_the_cloud_and_the_way_to_it() {
        let proxy = Secret::new("http://stackproof:p4ss@127.0.0.1:4711");
        let (rc, clouds) = cloud().files(&proxy).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("openrc");
        std::fs::write(&file, rc.reveal()).unwrap();
        let script = ". \"$0\"; echo \"$OS_AUTH_URL|$OS_PASSWORD|$http_proxy|[$no_proxy]\"";
        let out = std::process::Command::new("sh")
            .args(["-c", script])
            .arg(&file)
            .env("no_proxy", "192.168.0.0/16")
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&out.stdout),
            "http://openstack1:5000/v3|pw-of-admin-0123|http://stackproof:p4ss@127.0.0.1:4711|[]\n"
        );
        assert!(clouds.reveal().contains("\"demo\":"), "both users are in it");
    }

    #[test]
    fn lab_off_gives_the_shell_its_settings_back() {
        let proxy = Secret::new("http://stackproof:p4ss@127.0.0.1:4711");
        let (rc, _) = cloud().files(&proxy).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("openrc");
        std::fs::write(&file, rc.reveal()).unwrap();
        let show = "echo \"${http_proxy-none} ${NO_PROXY-none} ${OS_PASSWORD-none} \
                    ${STACKPROOF_LAB_PROXY-none} ${PS1-none}\"";
        for shell in ["sh", "bash"] {
            let run = |outer: Option<&str>| {
                let mut command = std::process::Command::new(shell);
                let script = format!("set -eu; PS1=old; . \"$0\"; . \"$0\"; lab_off; {show}");
                command.args(["-c", &script]).arg(&file);
                command.env_remove("http_proxy").env_remove("HTTP_PROXY");
                command.env_remove("no_proxy").env_remove("NO_PROXY");
                if let Some(outer) = outer {
                    command.env("http_proxy", outer).env("no_proxy", "internal");
                }
                let out = command.output().unwrap();
                let error = String::from_utf8_lossy(&out.stderr).into_owned();
                assert!(out.status.success(), "{shell}: {error}");
                String::from_utf8_lossy(&out.stdout).into_owned()
            };
            assert_eq!(run(None), "none none none none old\n", "{shell}");
            let outer = "http://squid:3128 internal none none old\n";
            assert_eq!(run(Some("http://squid:3128")), outer, "{shell}");
        }
    }

    #[test]
    fn a_cloud_survives_a_checkpoints_notes_and_never_prints_its_passwords() {
        let cloud = cloud();
        let notes = Cloud::notes(Some(&cloud));
        assert_eq!(Cloud::of_notes(&notes), Some(cloud.clone()));
        assert_eq!(Cloud::of_notes(&Cloud::notes(None)), None);
        assert!(!format!("{cloud:?}").contains("pw-of"));
        let redactor = Redactor::default();
        cloud.hide_in(&redactor);
        assert!(!redactor.clean(&notes.to_string()).contains("pw-of"));
    }
}
