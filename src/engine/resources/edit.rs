//! What all resources that edit a text file in place have in common.

use super::target::{PATHS, Seen, Target, refuse};
use crate::engine::resource::{Input, Script, SharedProbe, Verdict};

pub(super) trait Edit {
    fn target(&self) -> &Target;
    /// The whole new text. Editing an edited text changes nothing.
    fn edited(&self, old: &str) -> String;
    /// What `edited` would change, in words, without secrets.
    fn differences(&self, old: &str) -> Vec<String>;
    fn has_secrets(&self) -> bool {
        false
    }

    fn shared_paths(&self) -> Option<(&'static SharedProbe, String)> {
        Some((&PATHS, self.target().path.clone()))
    }

    fn judge_text(&self, seen: &str) -> Verdict {
        let seen = Seen::parse(seen);
        let mut lines = self.target().judge(&seen);
        match seen.text() {
            Err(why) => lines.push(why),
            Ok(old) if self.edited(old) == old && seen != Seen::Absent => {}
            Ok(old) => {
                if seen == Seen::Absent {
                    lines.push("absent".into());
                }
                lines.extend(self.differences(old));
            }
        }
        Verdict::from_lines(lines)
    }

    fn write_text(&self, seen: &str) -> Script {
        let seen = Seen::parse(seen);
        let old = match seen.text() {
            Ok(old) => old,
            Err(why) => return refuse(&self.target().path, &why),
        };
        let new = self.edited(old);
        if new == old && seen != Seen::Absent {
            return Script::new(self.target().mend());
        }
        // The rest of the file may hold secrets of its own: it is never shown either way.
        let new_mode = if self.has_secrets() { 0o640 } else { 0o644 };
        self.target().write(&seen, Input::SecretBytes(new.into_bytes()), new_mode)
    }
}

/// The [`Resource`](crate::engine::resource::Resource) methods of everything that is an [`Edit`].
macro_rules! edit_methods {
    () => {
        fn shared(&self) -> Option<(&'static crate::engine::resource::SharedProbe, String)> {
            self.shared_paths()
        }
        fn nothing(&self) -> &'static str {
            crate::engine::resources::target::ABSENT
        }
        fn judge(&self, seen: &str) -> crate::engine::resource::Verdict {
            self.judge_text(seen)
        }
        fn apply(&self, seen: &str) -> crate::engine::resource::Script {
            self.write_text(seen)
        }
        fn writes(&self) -> Vec<String> {
            vec![self.target.path.clone()]
        }
        fn quick(&self) -> bool {
            true
        }
    };
}
pub(super) use edit_methods;

/// `text` with a final newline, so that something can follow.
pub(super) fn ended(text: &str) -> String {
    let mut text = text.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}
