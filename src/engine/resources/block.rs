//! A marked block of text in a file.

use super::edit::{Edit, edit_methods, ended};
use super::target::{Target, target_methods};
use crate::engine::resource::Resource;

/// Text between `# BEGIN stackproof MARKER` and `# END stackproof MARKER`, appended to the end of
/// the file where absent and replaced in its place where different.
#[derive(Clone, Debug)]
pub struct Block {
    target: Target,
    marker: String,
    content: String,
}

impl Block {
    pub fn new(
        path: impl Into<String>,
        marker: impl Into<String>,
        content: impl Into<String>,
    ) -> Block {
        Block { target: Target::new(path), marker: marker.into(), content: content.into() }
    }
    target_methods!();

    fn text(&self) -> String {
        let (begin, end) = self.marks();
        format!("{begin}\n{}{end}\n", ended(&self.content))
    }
    fn marks(&self) -> (String, String) {
        (format!("# BEGIN stackproof {}", self.marker), format!("# END stackproof {}", self.marker))
    }
    /// The byte range of the block, marks included.
    fn find(&self, text: &str) -> Option<(usize, usize)> {
        let (begin, end) = self.marks();
        let (mut at, mut from) = (0, None);
        for line in text.split_inclusive('\n') {
            if line.trim_end() == begin {
                from = Some(at);
            }
            at += line.len();
            if line.trim_end() == end
                && let Some(from) = from
            {
                return Some((from, at));
            }
        }
        None
    }
}

impl Edit for Block {
    fn target(&self) -> &Target {
        &self.target
    }
    fn edited(&self, old: &str) -> String {
        match self.find(old) {
            Some((from, to)) => format!("{}{}{}", &old[..from], self.text(), &old[to..]),
            None => ended(old) + &self.text(),
        }
    }
    fn differences(&self, old: &str) -> Vec<String> {
        let what = if self.find(old).is_some() { "differs" } else { "absent" };
        vec![format!("block {}: {what}", self.marker)]
    }
}

impl Resource for Block {
    fn id(&self) -> String {
        format!("block {} {}", self.target.path, self.marker)
    }
    edit_methods!();
}
