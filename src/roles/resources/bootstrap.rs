//! Keystone's first administrator: the one account that cannot be made through the API.

use super::as_user;
use crate::engine::resource::{Input, Resource, Script, Verdict};
use crate::secret::Secret;

#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// `http://ADDRESS:5000`, without `/v3`.
    pub url: String,
    pub region: String,
    pub password: Secret,
}

impl Resource for Bootstrap {
    fn id(&self) -> String {
        "keystone administrator".into()
    }

    /// Logs in as the administrator: a wrong password is seen, not only a missing account.
    fn probe(&self) -> Script {
        let body = serde_json::json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": "admin", "domain": {"id": "default"}, "password": self.password.reveal()}}},
            "scope": {"project": {"name": "admin", "domain": {"id": "default"}}}}});
        Script {
            shell: format!(
                "curl -s -o /dev/null -m 120 -w '%{{http_code}}\\n' \
                 -H 'Content-Type: application/json' --data @\"$IN/login\" {}/v3/auth/tokens || true\n",
                self.url
            ),
            inputs: vec![("login".into(), Input::SecretBytes(body.to_string().into_bytes()))],
        }
    }

    fn judge(&self, seen: &str) -> Verdict {
        match seen.trim() {
            "201" => Verdict::Same,
            "401" => Verdict::Differs(vec!["administrator: cannot log in".into()]),
            "" | "000" => Verdict::Differs(vec!["administrator: keystone does not answer".into()]),
            code => Verdict::Differs(vec![format!("administrator: keystone answers {code}")]),
        }
    }

    fn apply(&self, _seen: &str) -> Script {
        let url = &self.url;
        Script {
            // The password goes through the environment: arguments can be read by every user.
            shell: format!(
                "OS_BOOTSTRAP_PASSWORD=$(cat \"$IN/password\") {} keystone-manage bootstrap \
                 --bootstrap-username admin --bootstrap-project-name admin \
                 --bootstrap-region-id {} --bootstrap-service-name keystone \
                 --bootstrap-admin-url {url}/v3/ --bootstrap-internal-url {url}/v3/ \
                 --bootstrap-public-url {url}/v3/\n",
                as_user("keystone"),
                self.region
            ),
            inputs: vec![("password".into(), Input::Secret(self.password.clone()))],
        }
    }

    fn patience(&self) -> u64 {
        30
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_in_no_script_and_in_no_debug_text() {
        let b = Bootstrap {
            url: "http://192.0.2.1:5000".into(),
            region: "RegionOne".into(),
            password: Secret::new("correct-horse-battery"),
        };
        for script in [b.probe(), b.apply("401")] {
            assert!(!script.shell.contains("correct-horse"), "{}", script.shell);
        }
        assert!(!format!("{b:?}").contains("correct-horse"));
        assert_eq!(b.judge("201\n"), Verdict::Same);
        assert!(matches!(b.judge("401\n"), Verdict::Differs(_)));
        assert!(matches!(b.judge("000\n"), Verdict::Differs(_)));
    }
}
