//! Puts the results of shards together.

use std::fs;
use std::path::{Path, PathBuf};

use super::result::{Alarm, Soak};
use crate::bad_input::BadInput;

/// The result of a whole run, from those of its shards.
pub(super) fn merge(files: &[PathBuf]) -> Result<Soak, BadInput> {
    let mut results = files.iter().map(|file| Ok((file.as_path(), read(file)?)));
    let (first, mut whole) = results.next().expect("clap asks for one at least")?;
    for next in results {
        let (file, other) = next?;
        if let Some(what) = difference(&whole, &other) {
            let (file, first) = (file.display(), first.display());
            return Err(BadInput::new(format!("{file}: of another run than {first}: another {what}")));
        }
        if let Some(shard) = other.shards.iter().find(|shard| whole.shards.contains(shard)) {
            let (file, of) = (file.display(), other.shape.of);
            return Err(BadInput::new(format!("{file}: shard {shard}/{of} is there twice")));
        }
        add(&mut whole, other);
    }
    let missing: Vec<String> = (1..=whole.shape.of)
        .filter(|shard| !whole.shards.contains(shard))
        .map(|shard| format!("{shard}/{}", whole.shape.of))
        .collect();
    if let [some, ..] = &missing[..] {
        let more = if missing.len() > 1 { format!(" and {} more", missing.len() - 1) } else { String::new() };
        return Err(BadInput::new(format!("not all shards are there: {some}{more} missing")));
    }
    whole.shards.sort_unstable();
    Ok(whole)
}

fn read(file: &Path) -> Result<Soak, BadInput> {
    let name = file.display();
    let text = fs::read(file).map_err(|error| BadInput::new(format!("{name}: {error}")))?;
    serde_json::from_slice(&text).map_err(|error| {
        let (line, column) = (error.line(), error.column().max(1));
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or_default();
        BadInput::new(format!("{name}:{line}:{column}: not what `lazytlb soak --json` prints: {what}"))
    })
}

/// In what two results are not of the same run.
fn difference(one: &Soak, other: &Soak) -> Option<&'static str> {
    let (one, other) = (&one.shape, &other.shape);
    let differ = [
        (one.seed != other.seed, "seed"),
        (one.of != other.of, "number of shards"),
        (one.runs != other.runs, "number of executions of each program"),
        (one.programs != other.programs, "number of programs"),
        (one.pairs != other.pairs, "choice of strategies, machines and memory models"),
        (one != other, "planted bug"),
    ];
    differ.into_iter().find(|(differs, _)| *differs).map(|(_, what)| what)
}

fn add(whole: &mut Soak, other: Soak) {
    whole.shards.extend(other.shards);
    whole.programs += other.programs;
    whole.seconds += other.seconds;
    for (strategy, counts) in other.strategies {
        whole.strategies.entry(strategy).or_default().add(&counts);
    }
    let key = |alarm: &Alarm| (alarm.strategy.clone(), alarm.kind.clone());
    for alarm in other.alarms {
        match whole.alarms.iter_mut().find(|first| key(first) == key(&alarm)) {
            Some(first) => {
                let runs = first.runs + alarm.runs;
                if alarm.place < first.place {
                    *first = alarm;
                }
                first.runs = runs;
            }
            None => whole.alarms.push(alarm),
        }
    }
    whole.alarms.sort_by_key(key);
}
