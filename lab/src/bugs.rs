//! `lazytlb bugs`: known bugs, planted and found.

use std::path::Path;

use anyhow::Result;
use comfy_table::{Cell, Color, Table, presets};
use lazytlb_sched_model::Litmus;
use serde::Serialize;

use crate::bad_input::BadInput;
use crate::suite::{self, Effort, Row, Run, Test};

/// Arguments of `lazytlb bugs`.
///
/// Each bug is a litmus test: a program, and what is wrong. It is found if the search comes to just the verdicts that the
/// test expects, wherever it expects them. Numbers with a B are those of real bugs; each test names its source.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Numbers of bugs (B04), names of their tests, or litmus files with a planted bug; all bundled bugs if none is given.
    bugs: Vec<String>,
    /// All of them, which is what is done anyway if none is named.
    #[arg(long, conflicts_with = "bugs")]
    all: bool,
    #[command(flatten)]
    effort: Effort,
    /// Prints the report of each: what KASAN would say, who holds what, the shortest timeline, its schedule.
    #[arg(long)]
    report: bool,
    /// Prints one JSON array instead of a table.
    #[arg(long)]
    json: bool,
    /// Lists the bugs with their descriptions.
    #[arg(long)]
    list: bool,
}

/// How the search for a bug ended.
#[derive(Serialize, Clone)]
pub(crate) struct Bug {
    id: String,
    title: String,
    test: String,
    /// Whether it was found as the test says, everywhere where it says so.
    pub(crate) found: bool,
    /// The worst that was found.
    kind: Option<&'static str>,
    executions: u64,
    seconds: f64,
    /// Where it was looked for.
    runs: Vec<Row>,
}

/// Runs the command; says whether all were found.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let tests = select(&arguments.bugs)?;
    if arguments.list {
        for Test { litmus, .. } in &tests {
            let (id, title) = named(litmus);
            let about: String = litmus.about.lines().map(|line| format!("    {line}\n")).collect();
            crate::print(&format!("{id} {title} ({})\n{about}\n", litmus.program.name))?;
        }
        return Ok(true);
    }
    let bugs = find(&tests, arguments.effort, arguments.report && !arguments.json)?;
    for report in bugs.iter().flat_map(|bug| &bug.runs).filter_map(|row| row.report.as_ref()) {
        crate::print(&format!("{report}\n"))?;
    }
    if arguments.json {
        crate::print_json(&bugs)?;
    } else {
        crate::print(&format!("{}\n", table(&bugs)))?;
    }
    Ok(bugs.iter().all(|bug| bug.found))
}

/// All bugs that are bundled.
pub(crate) fn all() -> Result<Vec<Test>, BadInput> {
    select(&[])
}

fn select(wanted: &[String]) -> Result<Vec<Test>, BadInput> {
    let mut bugs: Vec<Test> = suite::load(&[])?.into_iter().filter(|test| test.litmus.bug.is_some()).collect();
    bugs.sort_by(|one, other| one.litmus.bug.cmp(&other.litmus.bug));
    if wanted.is_empty() {
        return Ok(bugs);
    }
    let find = |name: &String| {
        if let Some(found) = bugs.iter().find(|test| named(&test.litmus).0 == name || test.asked_as == *name) {
            return Ok(found.clone());
        }
        if !Path::new(name).exists() {
            let known: Vec<&str> = bugs.iter().map(|test| named(&test.litmus).0).collect();
            return Err(BadInput::new(format!("unknown bug `{name}`; there are: {}", known.join(", "))));
        }
        let test = suite::load_one(name)?;
        if test.litmus.expected.is_empty() {
            return Err(BadInput::new(format!("{name}: says nowhere what must be found: no `expect` line")));
        }
        Ok(test)
    };
    wanted.iter().map(find).collect()
}

fn named(litmus: &Litmus) -> (&str, &str) {
    litmus.bug.as_ref().map_or(("", ""), |(id, title)| (id, title))
}

/// Looks for each where its test says that it is.
pub(crate) fn find(tests: &[Test], effort: Effort, reports: bool) -> Result<Vec<Bug>> {
    let mut runs = Vec::new();
    let mut counts = Vec::new();
    for test in tests {
        let before = runs.len();
        for expected in &test.litmus.expected {
            for memory in suite::usual_memories(&test.litmus) {
                runs.push(Run::new(test, expected.strategy, expected.rules, memory));
            }
        }
        counts.push(runs.len() - before);
    }
    let mut rows = suite::explore_all(&runs, effort, reports)?.into_iter();
    let bugs = tests.iter().zip(counts).map(|(Test { litmus, .. }, count)| {
        let runs: Vec<Row> = rows.by_ref().take(count).collect();
        let (id, title) = named(litmus);
        Bug {
            id: id.to_owned(),
            title: title.to_owned(),
            test: litmus.program.name.clone(),
            found: !runs.is_empty() && runs.iter().all(|row| row.expected && !row.kinds.is_empty()),
            // Findings come before errors in the order of kinds, the milder ones first.
            kind: runs
                .iter()
                .filter_map(|row| row.kinds.iter().find(|&&kind| kind != "holds").or(row.kinds.first()))
                .next()
                .copied(),
            executions: runs.iter().map(|row| row.executions).sum(),
            seconds: runs.iter().map(|row| row.seconds).sum(),
            runs,
        }
    });
    Ok(bugs.collect())
}

/// The bugs as a table.
pub(crate) fn table(bugs: &[Bug]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["bug", "title", "", "where", "what", "executions", "seconds"]);
    for bug in bugs {
        let (text, color) = if bug.found { ("found", Color::Green) } else { ("MISSED", Color::Red) };
        let mut places: Vec<String> =
            bug.runs.iter().map(|row| format!("{} on {}", row.strategy, row.machine)).collect();
        places.dedup();
        let mut kinds: Vec<&str> = bug.runs.iter().flat_map(|row| row.kinds.iter().copied()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        table.add_row([
            Cell::new(&bug.id),
            Cell::new(&bug.title),
            Cell::new(text).fg(color),
            Cell::new(places.join("\n")),
            Cell::new(kinds.join(" ")),
            Cell::new(bug.executions),
            Cell::new(format!("{:.4}", bug.seconds)),
        ]);
    }
    table
}
