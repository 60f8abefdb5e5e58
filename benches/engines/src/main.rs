//! Three engines on the same program, each in a process of its own: `cargo run --release -p lazytlb-engines`.
//!
//! The program is the textbook hazard pointer of `tests/programs`: readers that protect, look again and use; a writer
//! that unpublishes, scans and frees. Its code is generic over [`lazytlb_core::Memory`], so all engines run the same
//! lines. They do not do equal work: loom explores C11, a larger model than TSO; shuttle and loom pay for spawning and
//! joining threads; shuttle knows neither store buffers nor interrupts. What is compared is the time to a verdict.
//!
//! The processes are apart because shuttle installs a panic hook and loom cancels stacks by panicking.

mod loom_engine;
mod machine_engine;
mod shuttle_engine;

use std::env;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

/// What an engine did with the program.
#[derive(Clone, Serialize, Deserialize)]
struct Measured {
    what: String,
    executions: u64,
    /// Different states, where the engine compares states.
    states: Option<u64>,
    seconds: f64,
    /// Whether every choice was exhausted.
    complete: bool,
}

impl Measured {
    /// Runs `f`, which says how many executions it ran and whether that was all of them.
    fn time(what: impl Into<String>, f: impl FnOnce() -> (u64, Option<u64>, bool)) -> Measured {
        let started = Instant::now();
        let (executions, states, complete) = f();
        Measured { what: what.into(), executions, states, seconds: started.elapsed().as_secs_f64(), complete }
    }

    fn rate(&self) -> f64 {
        self.executions as f64 / self.seconds
    }
}

type Engine = fn() -> Vec<Measured>;

const ENGINES: [(&str, Engine); 3] =
    [("machine", machine_engine::run), ("shuttle", shuttle_engine::run), ("loom", loom_engine::run)];

/// The program of the headline figures.
const VERDICT: &str = "hazard 2x1 exhaustive";
const RANDOM: &str = "hazard 2x1 random";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => all(),
        ["--engine", name] => {
            let (_, run) = ENGINES.iter().find(|(known, _)| *known == name).context("no such engine")?;
            serde_json::to_writer(std::io::stdout().lock(), &run())?;
            Ok(())
        }
        _ => bail!("this takes no arguments: it runs each engine in a process of its own and compares them"),
    }
}

fn all() -> Result<()> {
    let mut results = Vec::new();
    for (name, _) in ENGINES {
        results.push((name, in_a_process(name)?));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["engine", "program", "executions", "states", "seconds", "executions/s", "states/s", ""]);
    for (name, measured) in results.iter().flat_map(|(name, all)| all.iter().map(move |one| (name, one))) {
        let states = measured.states.map_or(String::new(), |states| states.to_string());
        let state_rate =
            measured.states.map_or(String::new(), |states| format!("{:.0}", states as f64 / measured.seconds));
        table.add_row([
            (*name).to_owned(),
            measured.what.clone(),
            measured.executions.to_string(),
            states,
            format!("{:.6}", measured.seconds),
            format!("{:.0}", measured.rate()),
            state_rate,
            (if measured.complete { "complete" } else { "" }).to_owned(),
        ]);
    }
    println!("{table}\n");
    let find = |engine: usize, what: &str| {
        let found = results[engine].1.iter().find(|one| one.what.starts_with(what));
        found.with_context(|| format!("{} did not run {what}", results[engine].0))
    };
    let ours = results[0].1.iter().find(|one| one.what == format!("{VERDICT} tso")).context("no verdict under TSO")?;
    let times = |other: &Measured| other.seconds / ours.seconds;
    println!("A complete verdict on the hazard program with 2 readers, ours under TSO:");
    println!("  {:.0} times sooner than loom", times(find(2, VERDICT)?));
    println!(
        "  {:.0} times sooner than shuttle's exhaustive search, which covers neither TSO nor interrupts",
        times(find(1, VERDICT)?)
    );
    println!("Random executions a second, both under SC:");
    println!("  {:.1} times shuttle's", find(0, RANDOM)?.rate() / find(1, RANDOM)?.rate());
    Ok(())
}

fn in_a_process(engine: &str) -> Result<Vec<Measured>> {
    let output = Command::new(env::current_exe()?).args(["--engine", engine]).output()?;
    if !output.status.success() {
        bail!("{engine} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{engine} printed something else than its figures"))
}
