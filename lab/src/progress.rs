//! Progress on a terminal, and none in a pipe.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar for so many things.
pub(crate) fn bar(length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}").expect("the template is right");
    ProgressBar::new(length).with_style(style)
}

/// A count without an end.
pub(crate) fn spinner(of: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {human_pos} {msg}").expect("the template is right");
    ProgressBar::new_spinner().with_style(style).with_message(of)
}
