//! Text made safe for POSIX shell.

/// `text` as one word. Every byte survives except NUL, which no shell word can hold.
pub fn word(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// An absolute path of the node. `$ROOT` is empty on a node; tests set it to a scratch directory.
pub fn path(path: &str) -> String {
    format!("\"$ROOT\"{}", word(path))
}

/// Words separated by blanks.
pub fn words<S: AsRef<str>>(all: impl IntoIterator<Item = S>) -> String {
    all.into_iter().map(|w| word(w.as_ref())).collect::<Vec<_>>().join(" ")
}

/// A `printf` command (a builtin: no fork) that prints `bytes` exactly, whatever they are.
pub fn printf(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 16);
    if bytes.iter().all(|&b| b == b'\n' || b == b'\t' || (b' '..=b'~').contains(&b)) {
        out.push_str("printf %s '");
        for &b in bytes {
            match b {
                b'\'' => out.push_str(r"'\''"),
                b => out.push(b as char),
            }
        }
    } else {
        // As a format: octal escapes carry NUL and whatever a shell might take for its own.
        out.push_str("printf '");
        for &b in bytes {
            match b {
                b'\'' => out.push_str(r"'\''"),
                b'\\' => out.push_str(r"\\"),
                b'%' => out.push_str("%%"),
                b'\n' | b'\t' | b' '..=b'~' => out.push(b as char),
                b => out.push_str(&format!("\\{b:03o}")),
            }
        }
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn run(script: &str) -> Vec<u8> {
        let mut sh = Command::new("sh")
            .arg("-s")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        sh.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        sh.wait_with_output().unwrap().stdout
    }

    #[test]
    fn every_byte_survives_printf() {
        let all: Vec<u8> = (0..=255).chain(*b"'\\%s \\n $(id) `id` \"$HOME\"").collect();
        assert_eq!(run(&printf(&all)), all);
        let text = b"it's 100% \\ $HOME `id`\n\n";
        assert_eq!(run(&printf(text)), text);
        assert_eq!(run(&printf(b"")), b"");
    }

    #[test]
    fn words_survive_the_shell() {
        for text in ["", "a b", "it's", "$HOME", "-n", "a\nb", "*", "é", "\\"] {
            assert_eq!(run(&format!("printf %s {}", word(text))), text.as_bytes());
        }
    }
}
