//! The report of what was found: KASAN's part first, then what the kernel cannot know.
//!
//! After the report proper come what each CPU is on and what each mm is held by at the moment of the bug, the barrier
//! that was taken away if one was, the timeline of the execution with the fewest preemptions, and its schedule.

use core::fmt::Write;

use lazytlb_machine::{Found, LogLine, Recording, ScheduleError};

use crate::model::Model;

impl Model {
    /// Writes the report of what was found, from a replay of its schedule.
    ///
    /// `replay` is the command that replays it, if there is one.
    ///
    /// # Errors
    /// If the schedule does not fit this model.
    pub fn report(&self, found: &Found, replay: Option<&str>) -> Result<String, ScheduleError> {
        let recording = self.replay(&found.schedule)?;
        let mut text = recording.report.clone().unwrap_or_else(|| plain_header(found));
        section(&mut text, "Verdict", recording.verdicts.iter().map(ToString::to_string));
        section(&mut text, "Who holds what", self.facts().into_iter());
        if self.taken_away().next().is_some() {
            section(&mut text, "Missing ordering (taken away for this run)", self.taken_away().cloned());
        }
        if let Some(mutant) = self.mutant() {
            section(&mut text, "Planted", core::iter::once(mutant.to_string()));
        }
        section(&mut text, "Timeline", timeline(&recording));
        section(&mut text, "Schedule", found.schedule.to_string().lines().map(str::to_owned));
        if let Some(replay) = replay {
            section(&mut text, "Replay", core::iter::once(replay.to_owned()));
        }
        Ok(text)
    }
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
