//! The report of what was found: KASAN's part first, then what the kernel cannot know.
//!
//! After the report proper come what a program says of the moment of the bug, the timeline of the execution with the fewest
//! preemptions, and its schedule.

use core::fmt::Write;

use crate::record::LogLine;
use crate::search::{Found, Recording};

/// What is said under one heading.
pub type Section = (&'static str, Vec<String>);

/// Writes the report of what was found, from the recording of its schedule. Sections without a line are left out.
///
/// `replay` is the command that replays it, if there is one.
pub fn report(found: &Found, recording: &Recording, facts: &[Section], replay: Option<&str>) -> String {
    let mut text = recording.report.clone().unwrap_or_else(|| plain_header(found));
    section(&mut text, "Verdict", recording.verdicts.iter().map(ToString::to_string));
    for (heading, lines) in facts.iter().filter(|(_, lines)| !lines.is_empty()) {
        section(&mut text, heading, lines.iter().cloned());
    }
    section(&mut text, "Timeline", timeline(recording));
    section(&mut text, "Schedule", found.schedule.to_string().lines().map(str::to_owned));
    if let Some(replay) = replay {
        section(&mut text, "Replay", core::iter::once(replay.to_owned()));
    }
    text
}

/// The first lines where KASAN has no words: nobody touched anything.
fn plain_header(found: &Found) -> String {
    format!("BUG: lazytlb: {}: {}\n", found.verdict.kind, found.verdict.message)
}

fn section(text: &mut String, heading: &str, lines: impl Iterator<Item = String>) {
    let lines = lines.map(|line| format!(" {line}\n"));
    write!(text, "\n{heading}:\n{}", lines.collect::<String>()).expect("a string takes all");
}

/// So many steps at each end of a timeline are shown; what goes on for ever is long.
const SHOWN: usize = 200;

/// A line a step, each CPU's steps under its own heading, as much indented as its number.
fn timeline(recording: &Recording) -> impl Iterator<Item = String> {
    let log = &recording.log;
    let left_out = log.len().saturating_sub(2 * SHOWN);
    let (first, rest) = log.split_at(log.len().min(SHOWN));
    let gap = (left_out > 0).then(|| format!("  ... {left_out} more ..."));
    first.iter().map(line).chain(gap).chain(rest[left_out..].iter().map(line))
}

fn line(LogLine { step, place, task, function, what }: &LogLine) -> String {
    let indent = 4 * place;
    let colon = if function.is_empty() { "" } else { ": " };
    format!("{step:>5} {:indent$}cpu{place} {task}: {function}{colon}{what}", "")
}
