//! `lazytlb bugs`: the catalogue of known bugs, listed, explained, planted and found.

use std::path::Path;

use anyhow::Result;
use comfy_table::{Cell, Color, Table, presets};
use serde::Serialize;

use crate::bad_input::BadInput;
use crate::catalogue::{self, Entry, number, title};
use crate::suite::{self, Effort, Row, Run, Test};

/// Arguments of `lazytlb bugs`.
///
/// Without arguments it lists the catalogue. Each bug is a litmus test, or several: a program, what is wrong, and what must
/// be found where. A bug is found if the search comes to just the verdicts that its tests expect, wherever they expect them.
/// Bugs that no litmus test shows are listed as open, with the reason.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Explains these: numbers of bugs (B04), names of their tests, or litmus files with a planted bug.
    bugs: Vec<String>,
    /// Looks for all of them, and fails if one is missed.
    #[arg(long, conflicts_with = "bugs")]
    all: bool,
    #[command(flatten)]
    effort: Effort,
    /// Prints the report of everything that is found, not only of the first.
    #[arg(long, conflicts_with = "json")]
    report: bool,
    /// Prints one JSON array instead.
    #[arg(long)]
    json: bool,
    /// Lists the bugs, with their descriptions.
    #[arg(long, conflicts_with_all = ["all", "report"])]
    list: bool,
}

/// How the search for a bug ended, by one of its tests.
#[derive(Serialize, Clone)]
pub(crate) struct Bug {
    id: String,
    title: String,
    test: String,
    /// What is planted.
    planted: String,
    /// Whether it was found as the test says, everywhere where it says so.
    pub(crate) found: bool,
    /// The worst that was found.
    kind: Option<&'static str>,
    executions: u64,
    seconds: f64,
    /// Where it was looked for.
    runs: Vec<Row>,
}

/// An entry as it is listed.
#[derive(Serialize)]
struct Listed<'a> {
    id: &'a str,
    title: &'a str,
    /// Why there is no litmus test of it.
    open: Option<&'a str>,
    tests: Vec<ListedTest<'a>>,
}

#[derive(Serialize)]
struct ListedTest<'a> {
    test: &'a str,
    about: &'a str,
    planted: String,
    /// What must be found where.
    expected: Vec<Expected>,
}

#[derive(Serialize)]
struct Expected {
    strategy: &'static str,
    machine: &'static str,
    kinds: Vec<&'static str>,
}

/// Runs the command; says whether all were found.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.list || (arguments.bugs.is_empty() && !arguments.all) {
        list(&select(&arguments.bugs)?, arguments)?;
        return Ok(true);
    }
    let entries = select(&arguments.bugs)?;
    if !arguments.all && !arguments.json {
        let mut good = true;
        for entry in &entries {
            let bugs = find(&entry.tests, arguments.effort, true)?;
            explain(entry, &bugs, arguments.report)?;
            good &= bugs.iter().all(|bug| bug.found);
        }
        return Ok(good);
    }
    let tests: Vec<Test> = entries.iter().flat_map(|entry| entry.tests.clone()).collect();
    let bugs = find(&tests, arguments.effort, arguments.report && !arguments.json)?;
    if arguments.json {
        crate::print_json(&bugs)?;
    } else {
        for report in bugs.iter().flat_map(|bug| &bug.runs).filter_map(|row| row.report.as_ref()) {
            crate::print(&format!("{report}\n"))?;
        }
        crate::print(&format!("{}\n\n{}\n", table(&bugs, &entries), summary(&entries, &bugs)))?;
    }
    Ok(bugs.iter().all(|bug| bug.found))
}

/// All tests of bugs that are bundled.
pub(crate) fn all() -> Result<Vec<Test>, BadInput> {
    Ok(catalogue::all()?.into_iter().flat_map(|entry| entry.tests).collect())
}

fn select(wanted: &[String]) -> Result<Vec<Entry>, BadInput> {
    let entries = catalogue::all()?;
    if wanted.is_empty() {
        return Ok(entries);
    }
    let find = |name: &String| {
        if let Some(entry) = entries.iter().find(|entry| entry.id == *name) {
            return Ok(entry.clone());
        }
        let mut tests = entries.iter().flat_map(|entry| &entry.tests);
        if let Some(test) = tests.find(|test| number(test) == name || test.asked_as == *name) {
            return Ok(alone(test.clone()));
        }
        if !Path::new(name).exists() {
            let known: Vec<&str> = entries.iter().map(|entry| &*entry.id).collect();
            return Err(BadInput::new(format!("unknown bug `{name}`; there are: {}", known.join(", "))));
        }
        let test = suite::load_one(name)?;
        if test.litmus.expected().is_empty() {
            return Err(BadInput::new(format!("{name}: says nowhere what must be found: no `expect` line")));
        }
        Ok(alone(test))
    };
    wanted.iter().map(find).collect()
}

/// An entry of one test.
fn alone(test: Test) -> Entry {
    Entry { id: number(&test).to_owned(), title: title(&test).to_owned(), tests: vec![test], open: None }
}

/// What must be found where, each place once.
fn expected(test: &Test) -> Vec<Expected> {
    let mut all: Vec<Expected> = Vec::new();
    for one in test.litmus.expected() {
        let (strategy, machine) = (one.setting.scheme(), one.setting.machine());
        if !all.iter().any(|other| (other.strategy, other.machine) == (strategy, machine)) {
            all.push(Expected { strategy, machine, kinds: one.kinds });
        }
    }
    all
}

fn list(entries: &[Entry], arguments: &Arguments) -> Result<()> {
    if arguments.json {
        let listed = entries.iter().map(|entry| Listed {
            id: &entry.id,
            title: &entry.title,
            open: entry.open.as_deref(),
            tests: entry.tests.iter().map(listed_test).collect(),
        });
        return crate::print_json(&listed.collect::<Vec<_>>());
    }
    if arguments.list {
        for entry in entries {
            crate::print(&format!("{}\n", heading(entry)))?;
            for Test { litmus, .. } in &entry.tests {
                crate::print(&format!("{}\n", indent(litmus.about())))?;
            }
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["bug", "title", "", "planted", "must be found"]);
    for entry in entries {
        if let Some(reason) = &entry.open {
            let open = Cell::new("open").fg(Color::Yellow);
            table.add_row([Cell::new(&entry.id), Cell::new(&entry.title), open, Cell::new(reason)]);
        }
        for test in &entry.tests {
            let mut kinds: Vec<&str> = expected(test).into_iter().flat_map(|one| one.kinds).collect();
            kinds.sort_unstable();
            kinds.dedup();
            table.add_row([
                Cell::new(number(test)),
                Cell::new(title(test)),
                Cell::new("test").fg(Color::Green),
                Cell::new(test.litmus.planted()),
                Cell::new(kinds.join(" ")),
            ]);
        }
    }
    crate::print(&format!("{table}\n\n`lazytlb bugs B01` explains one and finds it, `lazytlb bugs --all` finds all.\n"))
}

fn listed_test(test: &Test) -> ListedTest<'_> {
    let litmus = &test.litmus;
    ListedTest { test: litmus.name(), about: litmus.about(), planted: litmus.planted(), expected: expected(test) }
}

fn heading(entry: &Entry) -> String {
    match &entry.open {
        Some(reason) => {
            format!("{} {}\n\n{}\n    Open: no litmus test shows it.", entry.id, entry.title, indent(reason))
        }
        None => format!("{} {}\n", entry.id, entry.title),
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// An entry in full: what happened, what is planted, on which machine, what must be found, and what was; with the report of
/// the first finding, or of all.
fn explain(entry: &Entry, bugs: &[Bug], all_reports: bool) -> Result<()> {
    crate::print(&format!("{}\n", heading(entry)))?;
    for (test, bug) in entry.tests.iter().zip(bugs) {
        let litmus = &test.litmus;
        if entry.tests.len() > 1 {
            crate::print(&format!("{} {}\n\n", bug.id, bug.title))?;
        }
        let names = |names: Vec<&str>| names.join(", ");
        let facts = [
            ("Test", format!("{}, {} CPUs", litmus.name(), litmus.cpus())),
            ("Planted", bug.planted.clone()),
            ("Machine", names(litmus.machines())),
            ("Memory", names(litmus.memories().iter().map(|memory| memory.name()).collect())),
        ];
        let facts: String = facts.iter().map(|(what, text)| format!("    {what:<8} {text}\n")).collect();
        crate::print(&format!("{}\n{facts}\n{}\n\n", indent(litmus.about()), suite::table(&bug.runs)))?;
        let reports = bug.runs.iter().filter_map(|row| row.report.as_ref());
        for report in reports.take(if all_reports { usize::MAX } else { 1 }) {
            crate::print(&format!("{report}\n"))?;
        }
    }
    Ok(())
}

/// Looks for each where its test says that it is.
pub(crate) fn find(tests: &[Test], effort: Effort, reports: bool) -> Result<Vec<Bug>> {
    let mut runs = Vec::new();
    let mut counts = Vec::new();
    for test in tests {
        let expected = test.litmus.expected();
        counts.push(expected.len());
        runs.extend(expected.into_iter().map(|one| Run { test: test.clone(), setting: one.setting }));
    }
    let mut rows = suite::explore_all(&runs, effort, reports)?.into_iter();
    let bugs = tests.iter().zip(counts).map(|(test, count)| {
        let runs: Vec<Row> = rows.by_ref().take(count).collect();
        let shows = |row: &Row| row.expected && !row.kinds.is_empty();
        // That a strategy is not hit by it is part of what a test can say.
        let says_nothing = |row: &Row| row.expected && row.is_told_nothing;
        Bug {
            id: number(test).to_owned(),
            title: title(test).to_owned(),
            test: test.litmus.name().to_owned(),
            planted: test.litmus.planted(),
            found: runs.iter().any(shows) && runs.iter().all(|row| shows(row) || says_nothing(row)),
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

fn summary(entries: &[Entry], bugs: &[Bug]) -> String {
    let is_found = |entry: &&Entry| {
        let mut tests = bugs.iter().filter(|bug| entry.tests.iter().any(|test| test.litmus.name() == bug.test));
        entry.open.is_none() && tests.all(|bug| bug.found)
    };
    let found = entries.iter().filter(is_found).count();
    let open = entries.iter().filter(|entry| entry.open.is_some()).count();
    let seconds: f64 = bugs.iter().map(|bug| bug.seconds).sum();
    let (of, tests) = (entries.len(), bugs.len());
    format!("{found} of {of} bugs found, by {tests} tests, in {seconds:.1} s of one CPU; {open} open.")
}

/// The bugs as a table, those that are open at the end.
fn table(bugs: &[Bug], entries: &[Entry]) -> Table {
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
    for entry in entries.iter().filter(|entry| entry.open.is_some()) {
        table.add_row([Cell::new(&entry.id), Cell::new(&entry.title), Cell::new("open").fg(Color::Yellow)]);
    }
    table
}
