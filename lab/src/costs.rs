//! `lazytlb costs`: what each path of the switch path costs under each strategy.

use anyhow::Result;
use comfy_table::{Cell, Table, presets};
use lazytlb_replay::Counts;
use lazytlb_replay::costs::{Path, costs};
use lazytlb_sched_model::{Rules, Strategy};
use serde::Serialize;

/// Arguments of `lazytlb costs`.
///
/// Counted by running each strategy's own code on a machine that counts: loads (ld) and stores (st) of shared words,
/// read-modify-writes (rmw), full fences (F), interrupted CPUs (ipi), page-table roots loaded (root). What a path does under
/// every strategy, the architecture's work included, is counted too. Nothing is said of time: a load can be a cache miss.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine's rules.
    #[arg(long, default_value = "broadcast-flush", value_name = "RULES", value_parser = crate::replay::rules)]
    machine: Rules,
    /// Only paths of this number, `P15` say; can be repeated. All paths if not given.
    #[arg(long, value_name = "NUMBER", value_parser = number)]
    path: Vec<u8>,
    /// Prints one JSON array instead of tables.
    #[arg(long)]
    json: bool,
}

/// What a path costs under a strategy.
#[derive(Serialize)]
struct Row {
    strategy: &'static str,
    path: &'static str,
    loads: u64,
    stores: u64,
    rmw: u64,
    fences: u64,
    interrupted: u64,
    root_loads: u64,
    freed: u64,
}

/// The paths of each table.
const TABLES: [&[Path]; 4] = [
    &[Path::UserToKernel, Path::KernelToKernel, Path::KernelToSame, Path::KernelToOther, Path::UserToUser, Path::Exit],
    &[Path::LastPut, Path::LastPutBorrowed, Path::BorrowerGoesOn],
    &[Path::Offline, Path::Online, Path::UseMm, Path::UnuseMm],
    &[Path::Exec, Path::ExecByKernel, Path::FlushBorrowed],
];

/// The number of a path, with or without its `P`.
fn number(text: &str) -> Result<u8, String> {
    let digits = text.strip_prefix(['P', 'p']).unwrap_or(text);
    let known = |number: &u8| Path::ALL.iter().any(|path| path.number() == *number);
    let mut numbers: Vec<String> = Path::ALL.iter().map(|path| format!("P{}", path.number())).collect();
    numbers.dedup();
    digits.parse().ok().filter(known).ok_or_else(|| format!("there is no such path; there are: {}", numbers.join(", ")))
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let is_wanted = |path: &Path| arguments.path.is_empty() || arguments.path.contains(&path.number());
    let of = |strategy| costs(strategy, arguments.machine).into_iter().filter(|(path, _)| is_wanted(path)).collect();
    let counted: Vec<(Strategy, Vec<(Path, Counts)>)> =
        Strategy::KNOWN.iter().map(|&strategy| (strategy, of(strategy))).collect();
    if arguments.json {
        let row = |strategy: &Strategy, &(path, counts): &(Path, Counts)| Row {
            strategy: strategy.name(),
            path: path.name(),
            loads: counts.loads,
            stores: counts.stores,
            rmw: counts.rmw,
            fences: counts.fences,
            interrupted: counts.interrupted,
            root_loads: counts.root_loads,
            freed: counts.freed,
        };
        let rows: Vec<Row> =
            counted.iter().flat_map(|(strategy, paths)| paths.iter().map(move |path| row(strategy, path))).collect();
        crate::print_json(&rows)?;
        return Ok(true);
    }
    for paths in TABLES {
        let paths: Vec<Path> = paths.iter().copied().filter(is_wanted).collect();
        if paths.is_empty() {
            continue;
        }
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(core::iter::once("strategy").chain(paths.iter().map(|path| path.name())));
        for (strategy, counted) in &counted {
            let cell = |path: &Path| {
                let counts = counted.iter().find(|(other, _)| other == path).map(|(_, counts)| counts);
                Cell::new(counts.map_or(String::new(), cell))
            };
            table.add_row(core::iter::once(Cell::new(strategy.name())).chain(paths.iter().map(cell)));
        }
        crate::print(&format!("{table}\n\n"))?;
    }
    Ok(true)
}

/// What was counted, without what was not done.
fn cell(counts: &Counts) -> String {
    let mut parts = Vec::new();
    for (n, unit) in [
        (counts.rmw, "rmw"),
        (counts.fences, "F"),
        (counts.stores, "st"),
        (counts.loads, "ld"),
        (counts.interrupted, "ipi"),
        (counts.root_loads, "root"),
    ] {
        if n > 0 {
            parts.push(format!("{n} {unit}"));
        }
    }
    if parts.is_empty() { "0".into() } else { parts.join(", ") }
}
