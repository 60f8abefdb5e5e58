//! What all generations make of the programs of the conformance suite.

use anyhow::Result;
use comfy_table::{Table, presets};
use lazytlb_lazy_mmu::Generation;
use lazytlb_lazy_mmu::conformance::{CASES, Case, Fault, Outcome, run as run_case};
use serde::Serialize;

use super::{Name, WithGeneration};

/// What a generation makes of a program.
#[derive(Serialize)]
struct Made {
    generation: &'static str,
    program: &'static str,
    calls: &'static str,
    what: &'static str,
    /// In a word: see [`verdict`].
    verdict: &'static str,
    enable: u8,
    pause: u8,
    active: bool,
    warnings: u32,
    bugs: u32,
    unbatched: u32,
    faults: Vec<String>,
}

/// All programs under one generation.
struct RunCases;

impl WithGeneration for RunCases {
    type Output = Vec<Made>;
    fn with<G: Generation + 'static>(self) -> Vec<Made> {
        CASES.iter().map(|case| made(G::NAME, case, run_case::<G>(case.each_call(), &|_| ()))).collect()
    }
}

fn made(generation: &'static str, case: &Case, outcome: Outcome) -> Made {
    Made {
        generation,
        program: case.name,
        calls: case.calls,
        what: case.what,
        verdict: verdict(&outcome),
        enable: outcome.counts.0,
        pause: outcome.counts.1,
        active: outcome.is_active,
        warnings: outcome.warnings,
        bugs: outcome.bugs,
        unbatched: outcome.unbatched,
        faults: outcome.faults().map(|fault| fault.to_string()).collect(),
    }
}

/// One word for a cell of the table.
fn verdict(outcome: &Outcome) -> &'static str {
    let has = |one: Fault| outcome.faults().any(|fault| fault == one);
    match outcome {
        _ if outcome.bugs > 0 => "stops",
        _ if outcome.warnings > 0 => "warns",
        _ if has(Fault::LeftOn) => "STAYS ON",
        _ if has(Fault::NotInForce) => "WRONG",
        _ if has(Fault::EnteredTwice) || has(Fault::NotEntered) => "unpaired",
        _ if outcome.unbatched > 0 => "slow",
        _ => "right",
    }
}

/// What the calls are called, and which programs are wrong themselves.
const CALLS: &str = "\
e enable, h enable with a hint, d disable, p pause, r resume, + and - the ends of an interrupt.
From T8 to T14, and in T16, the program itself is wrong.
";

/// What the words of the table mean.
const WORDS: [(&str, &str); 7] = [
    (
        "right",
        "callbacks pair, what is changed is in force behind each disable and in each pause, and the mode is off in the end.",
    ),
    ("slow", "right, but the mode is off where a section is open."),
    ("warns", "a debug build of the kernel says that something is wrong."),
    ("stops", "it says so and stops."),
    (
        "unpaired",
        "callbacks do not pair, without a word: right, or slow, where an architecture lets them be (arm64); Xen stops the machine.",
    ),
    ("WRONG", "something is not in force, without a word."),
    ("STAYS ON", "in the end the mode is on, without a word."),
];

/// The meaning of those words that the table has.
fn legend(made: &[Vec<Made>]) -> String {
    let is_there = |word: &str| made.iter().flatten().any(|made| made.verdict == word);
    let words = WORDS.iter().filter(|(word, _)| is_there(word));
    words.map(|(word, meaning)| format!("{word}: {meaning}\n")).collect()
}

/// Prints the table.
pub(super) fn run(json: bool) -> Result<bool> {
    let names = <Name as clap::ValueEnum>::value_variants();
    let made: Vec<Vec<Made>> = names.iter().map(|name| name.with(RunCases)).collect();
    if json {
        crate::print_json(&made.into_iter().flatten().collect::<Vec<_>>())?;
    } else {
        crate::print(&format!("{}\n\n{CALLS}{}", table(&made), legend(&made)))?;
    }
    Ok(true)
}

/// A line for each program, a column for each generation.
fn table(made: &[Vec<Made>]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["program", "calls"].into_iter().chain(made.iter().map(|made| made[0].generation)));
    for (index, case) in CASES.iter().enumerate() {
        table.add_row([case.name, case.calls].into_iter().chain(made.iter().map(|made| made[index].verdict)));
    }
    table
}
