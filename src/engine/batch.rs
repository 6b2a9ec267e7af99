//! Many fragments of shell in one script and one round trip.
//!
//! The script comes over standard input and is one compound command: the shell runs nothing before
//! it has read all of it, so that a connection cut on the way leaves nothing half done. Each
//! fragment runs in a subshell of its own, its output and its errors framed by a random token that
//! nothing it prints can contain.

use super::quote;
use super::resource::Script;
use super::transport::{Output, Shell};
use crate::error::{Context, Error, Kind, Result, last_lines};
use crate::secret::Secret;
use std::fmt::Write;

/// What one fragment did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Piece {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    pub fn stderr_tail(&self, lines: usize) -> Vec<String> {
        last_lines(&String::from_utf8_lossy(&self.stderr), lines)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Observing: each fragment stands for itself.
    GoOn,
    /// Changing: what follows may need what failed.
    Stop,
}

/// Runs `fragments` in order in one round trip. `limit` is what they see as `$LIMIT`, in seconds.
/// After a failure with [`OnFailure::Stop`] the pieces of the rest are missing.
pub async fn run(
    shell: &dyn Shell,
    fragments: &[Script],
    limit: u64,
    on_failure: OnFailure,
) -> Result<Vec<Piece>> {
    if fragments.is_empty() {
        return Ok(Vec::new());
    }
    let token = Secret::generate(16).doing(Kind::Host, || "reading random numbers".to_owned())?;
    let token = format!("stackproof-{}", token.reveal());
    let output = shell.script(build(&token, fragments, limit, on_failure)).await?;
    cut(&token, fragments.len(), &output, on_failure)
}

fn build(token: &str, fragments: &[Script], limit: u64, on_failure: OnFailure) -> String {
    let mut out = format!(
        "{{\nexport LC_ALL=C PATH=\"$PATH:/usr/local/sbin:/usr/sbin:/sbin\" ROOT=\"${{ROOT-}}\" LIMIT={limit}\n\
         umask 022\nB={token}\nD=${{STAGE:-/run}}/$B\n"
    );
    let with_inputs: Vec<usize> =
        (0..fragments.len()).filter(|&i| !fragments[i].inputs.is_empty()).collect();
    if !with_inputs.is_empty() {
        // Removed however the script ends; a reboot clears /run anyway.
        out.push_str("trap 'rm -rf \"$D\"' EXIT\ntrap 'exit 129' HUP INT TERM PIPE\n(umask 077\nmkdir \"$D\"");
        for i in &with_inputs {
            let _ = write!(out, " \"$D/{i}\"");
        }
        out.push_str(" || exit 1\n");
        for &i in &with_inputs {
            for (name, input) in &fragments[i].inputs {
                let file = quote::word(&format!("{i}/{name}"));
                let _ = writeln!(out, "{} >\"$D\"/{file} || exit 1", quote::printf(input.bytes()));
            }
        }
        out.push_str(") || exit 97\n");
    }
    for (i, fragment) in fragments.iter().enumerate() {
        let _ = write!(
            out,
            "printf '%s\\n' \"$B {i}\"; printf '%s\\n' \"$B {i}\" >&2\n\
             ( IN=$D/{i}\n{}\n) </dev/null\n\
             r=$?; printf '\\n%s\\n' \"$B {i} $r\"; printf '\\n%s\\n' \"$B {i} $r\" >&2\n",
            fragment.shell
        );
        if on_failure == OnFailure::Stop {
            out.push_str("[ $r -eq 0 ] || exit 0\n");
        }
    }
    out.push_str("exit 0\n}\n");
    out
}

/// The stream cut at its frames: `TOKEN i`, the text, `TOKEN i STATUS`.
fn frames(token: &str, count: usize, stream: &[u8]) -> Option<Vec<(Vec<u8>, i32)>> {
    let mut out = Vec::new();
    let mut rest = stream;
    for i in 0..count {
        let head = format!("{token} {i}\n");
        let Some(at) = find(rest, head.as_bytes()) else { break };
        rest = &rest[at + head.len()..];
        let foot = format!("\n{token} {i} ");
        let at = find(rest, foot.as_bytes())?;
        let text = rest[..at].to_vec();
        rest = &rest[at + foot.len()..];
        let end = rest.iter().position(|&b| b == b'\n')?;
        let status = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
        rest = &rest[end + 1..];
        out.push((text, status));
    }
    Some(out)
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = hay[from..].iter().position(|&b| b == first) {
        if hay[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

fn cut(token: &str, count: usize, output: &Output, on_failure: OnFailure) -> Result<Vec<Piece>> {
    let broken = || {
        Error::provision(format!("the node's shell ended early (status {})", output.status))
            .evidence(
                last_lines(&String::from_utf8_lossy(&output.stderr), 8)
                    .into_iter()
                    .filter(|l| !l.contains(token)),
            )
            .hint("is there a POSIX sh, sudo without a password, and room in /run on the node?")
    };
    let stdout = frames(token, count, &output.stdout).ok_or_else(broken)?;
    let stderr = frames(token, count, &output.stderr).ok_or_else(broken)?;
    let failed = stdout.last().is_some_and(|(_, status)| *status != 0);
    let whole = stdout.len() == count || (on_failure == OnFailure::Stop && failed);
    if !whole || stderr.len() != stdout.len() {
        return Err(broken());
    }
    let piece = |((stdout, status), (stderr, _))| Piece { status, stdout, stderr };
    Ok(stdout.into_iter().zip(stderr).map(piece).collect())
}

#[cfg(test)]
mod tests;
