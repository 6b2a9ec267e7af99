//! Writes a JSON file whole or not at all, readable by its owner alone, without secrets.

use crate::error::{Context, Error, Kind, Result};
use crate::fsutil::{self, NamedOutput};
use crate::secret::Redactor;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Mode 0600 where `path` is a regular file, which is replaced whole; links are followed, devices
/// and FIFOs are written to. Errors are [`Kind::Host`] and name the file.
pub fn json(to: JsonOutput, value: &impl Serialize, redactor: &Redactor) -> Result<()> {
    let mut value =
        serde_json::to_value(value).doing(Kind::Internal, || "the result is no JSON".into())?;
    clean(&mut value, redactor);
    let text = pretty(&value)?;
    to.output
        .write_private(text.as_bytes())
        .doing(Kind::Host, || format!("{} cannot be written", to.path.display()))
}

/// Where a JSON file goes, found to be writable.
#[derive(Debug)]
pub struct JsonOutput {
    path: PathBuf,
    output: NamedOutput,
}

impl JsonOutput {
    pub fn is_stdout(&self) -> bool {
        self.output.is_stdout()
    }
}

/// Finds out early whether [`json`] will be able to write there. The folder is made if missing.
pub fn can(path: &Path) -> Result<JsonOutput> {
    let cannot = || format!("{} cannot be written", path.display());
    if path.is_dir() {
        return Err(Error::input(cannot()).hint("it is a folder: name a file in it"));
    }
    std::fs::create_dir_all(fsutil::folder_of(path)).doing(Kind::Input, cannot)?;
    let output = NamedOutput::check(path).doing(Kind::Input, cannot)?;
    Ok(JsonOutput { path: path.to_owned(), output })
}

/// The text of `value`, for standard output.
pub fn pretty(value: &Value) -> Result<String> {
    let text = serde_json::to_string_pretty(value)
        .doing(Kind::Internal, || "the result is no JSON".into())?;
    Ok(text + "\n")
}

/// Removes secrets from every string, keys too. Done on the values, because escaping could
/// otherwise hide a secret from the search.
pub fn clean(value: &mut Value, redactor: &Redactor) {
    match value {
        Value::String(text) => *text = redactor.clean(text),
        Value::Array(all) => all.iter_mut().for_each(|v| clean(v, redactor)),
        Value::Object(map) => {
            let cleaned = std::mem::take(map).into_iter().map(|(key, mut v)| {
                clean(&mut v, redactor);
                (redactor.clean(&key), v)
            });
            map.extend(cleaned.collect::<Vec<_>>());
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_file_is_private_whole_and_without_secrets_even_escaped_ones() {
        let redactor = Redactor::default();
        redactor.add(&Secret::new("quo\"ted\\secret"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/out.json");
        let value = json!({"a": ["x quo\"ted\\secret y"], "k quo\"ted\\secret": 1});
        json(can(&path).unwrap(), &value, &redactor).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("ted"), "{text}");
        let back: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back, json!({"a": ["x [secret] y"], "k [secret]": 1}));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("folder");
        std::fs::create_dir(&taken).unwrap();
        let e = can(&taken).unwrap_err();
        assert!(e.to_string().contains("folder"), "{e}");
        assert_eq!(e.kind(), Kind::Input);
        let full = can(Path::new("/dev/full")).unwrap();
        let e = json(full, &json!({}), &Redactor::default()).unwrap_err();
        assert_eq!(e.kind(), Kind::Host);
        can(&dir.path().join("fine.json")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
