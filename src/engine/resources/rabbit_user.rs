//! A user of RabbitMQ.

use crate::engine::quote;
use crate::engine::resource::{Input, Resource, Script, Verdict};
use crate::secret::Secret;

/// A user whose password logs in and who may do everything in vhost `/`. Observed and changed by
/// one expression evaluated on the broker: each `rabbitmqctl` starts an Erlang machine of its own,
/// seconds under emulation. The expression travels on standard input.
#[derive(Clone, Debug)]
pub struct RabbitUser {
    name: String,
    password: Secret,
}

impl RabbitUser {
    pub fn new(name: impl Into<String>, password: Secret) -> RabbitUser {
        RabbitUser { name: name.into(), password }
    }
    fn bind(&self) -> String {
        format!("U = {}, P = {}, ", binary(&self.name), binary(self.password.reveal()))
    }
}

/// An Erlang binary of these bytes: numbers need no quoting.
fn binary(text: &str) -> String {
    let bytes: Vec<String> = text.bytes().map(|b| b.to_string()).collect();
    format!("<<{}>>", bytes.join(","))
}

/// erl_call is a small C program and costs nothing beside rabbitmqctl; it needs the broker's cookie
/// and node name.
const EVAL: &str = r#"evaluate() {
  n=
  [ -r "$ROOT"/etc/rabbitmq/rabbitmq-env.conf ] &&
    n=$(. "$ROOT"/etc/rabbitmq/rabbitmq-env.conf && echo "${RABBITMQ_NODENAME:-$NODENAME}")
  if [ -z "$n" ]; then read -r h </proc/sys/kernel/hostname; n=rabbit@${h%%.*}; fi
  for e in "$ROOT"/usr/lib*/erlang/lib/erl_interface-*/bin/erl_call \
           "$ROOT"/usr/lib*/erlang/bin/erl_call; do
    [ -x "$e" ] || continue
    if r=$(HOME=$ROOT/var/lib/rabbitmq "$e" -sname "$n" -e <"$1" 2>/dev/null); then
      case $r in *stackproof*) echo "$r"; return 0;; esac
    fi
    # It is there and got no answer: rabbitmqctl would get none either, after half a minute.
    return 1
  done
  rabbitmqctl -q eval <"$1"
}
"#;

/// Has the broker evaluate an expression without secrets whose value is `{stackproof, "TEXT"}`, and
/// prints the text, `;` being a line's end.
pub fn asked(expression: &str) -> String {
    format!(
        "{EVAL}printf '%s.\\n' {} | evaluate /dev/stdin | tr -d '\\n' | \
         sed 's/.*{{stackproof, *\"//; s/\".*//' | tr ';' '\\n'",
        quote::word(expression)
    )
}

impl Resource for RabbitUser {
    fn id(&self) -> String {
        format!("rabbit user {}", self.name)
    }
    fn probe(&self) -> Script {
        let expression = format!(
            "{}\
             A = case catch rabbit_access_control:check_user_pass_login(U, P) of \
             {{ok, _}} -> ok; _ -> refused end, \
             Q = case catch rabbit_auth_backend_internal:list_user_permissions(U) of \
             L when is_list(L) -> case [X || X <- L, \
             proplists:get_value(vhost, X) =:= <<\"/\">>, \
             proplists:get_value(configure, X) =:= <<\".*\">>, \
             proplists:get_value(write, X) =:= <<\".*\">>, \
             proplists:get_value(read, X) =:= <<\".*\">>] of \
             [] -> missing; _ -> all end; _ -> absent end, \
             {{stackproof, A, Q}}.\n",
            self.bind()
        );
        Script::new(format!("{EVAL}evaluate \"$IN/expression\" 2>/dev/null; true"))
            .input("expression", Input::SecretBytes(expression.into_bytes()))
    }
    fn judge(&self, seen: &str) -> Verdict {
        let seen: String = seen.chars().filter(|c| !c.is_whitespace()).collect();
        let Some((_, answer)) = seen.split_once("{stackproof,") else {
            return Verdict::Differs(vec!["RabbitMQ does not answer".into()]);
        };
        let answer = answer.split('}').next().unwrap_or_default();
        let (password, permissions) = answer.split_once(',').unwrap_or((answer, ""));
        if permissions == "absent" {
            return Verdict::Differs(vec!["absent".into()]);
        }
        let mut lines = Vec::new();
        if password != "ok" {
            lines.push("password: differs".into());
        }
        if permissions != "all" {
            lines.push("permissions on /: differ".into());
        }
        Verdict::from_lines(lines)
    }
    fn apply(&self, _seen: &str) -> Script {
        let expression = format!(
            "{}\
             W = <<\"stackproof\">>, S = <<\".*\">>, \
             R = case rabbit_auth_backend_internal:exists(U) of \
             true -> rabbit_auth_backend_internal:change_password(U, P, W); \
             false -> rabbit_auth_backend_internal:add_user(U, P, W) end, \
             G = rabbit_auth_backend_internal:set_permissions(U, <<\"/\">>, S, S, S, W), \
             {{stackproof, R, G}}.\n",
            self.bind()
        );
        Script::new(format!(
            "{EVAL}r=$(evaluate \"$IN/expression\") && case $r in *stackproof*ok*ok*) exit 0;; esac\n\
             echo 'RabbitMQ refused the change' >&2; exit 1"
        ))
        .input("expression", Input::SecretBytes(expression.into_bytes()))
    }
    fn patience(&self) -> u64 {
        30
    }
}
