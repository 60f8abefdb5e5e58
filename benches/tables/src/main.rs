//! Writes what criterion has measured into the tables of a guide: `cargo run -p lazytlb-bench-tables -- docs/MMU-NOTIFIER.md`.
//!
//! A table stands between two comments, of which the first says what is in it: a group of benches, its columns (the benches' parameters; `-` if
//! they have none), and its rows (their names).
//!
//! ```text
//! <!-- bench pair | 0, 1, 4 | hazards, Mutex<Vec> -->
//! <!-- end -->
//! ```
//!
//! A cell has the median of the samples, in nanoseconds, and the median absolute deviation from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Deserialize;

/// A bench, by its group, its name and its parameter.
type Key = (String, String, String);

/// What a bench is called (`benchmark.json`).
#[derive(Deserialize)]
struct Benchmark {
    group_id: String,
    function_id: Option<String>,
    value_str: Option<String>,
}

/// What was measured (`estimates.json`), in nanoseconds.
#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
    median_abs_dev: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

/// All that was measured last, as cells.
struct Measured(BTreeMap<Key, String>);

impl Measured {
    /// Reads criterion's folder.
    fn read(folder: &Path) -> Result<Measured> {
        let mut cells = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let entries =
                fs::read_dir(&folder).with_context(|| format!("{}: no benches were run", folder.display()))?;
            for entry in entries {
                let path = entry?.path();
                if path.ends_with("new") && path.join("benchmark.json").exists() {
                    let Benchmark { group_id, function_id, value_str } = json(path.join("benchmark.json"))?;
                    let key = (group_id, function_id.unwrap_or_default(), value_str.unwrap_or_default());
                    cells.insert(key, cell(&json(path.join("estimates.json"))?));
                } else if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        Ok(Measured(cells))
    }

    /// A group's table. A row or a column of which nothing was measured is a mistake.
    fn table(&self, group: &str, columns: &[&str], rows: &[&str]) -> Result<String> {
        let cell = |row: &str, column: &str| {
            let key = (group.to_owned(), row.to_owned(), column.to_owned());
            self.0.get(&key).map_or("", String::as_str)
        };
        let unknown = rows.iter().find(|row| columns.iter().all(|column| cell(row, column).is_empty()));
        ensure!(unknown.is_none(), "nothing was measured of `{group}/{}`", unknown.copied().unwrap_or_default());
        let unknown = columns.iter().find(|column| rows.iter().all(|row| cell(row, column).is_empty()));
        ensure!(unknown.is_none(), "nothing was measured in `{group}` of `{}`", unknown.copied().unwrap_or_default());
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        let heads = columns.iter().map(|column| if column.is_empty() { "ns" } else { column });
        table.set_header([""].into_iter().chain(heads));
        for row in rows {
            let name = format!("`{row}`");
            table.add_row([name.as_str()].into_iter().chain(columns.iter().map(|column| cell(row, column))));
        }
        Ok(table.to_string())
    }
}

fn json<T: for<'a> Deserialize<'a>>(file: PathBuf) -> Result<T> {
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

/// Two digits or three, and one more of what it spreads.
fn cell(estimates: &Estimates) -> String {
    let median = estimates.median.point_estimate;
    let digits = match median {
        ..1.0 => 2,
        ..20.0 => 1,
        _ => 0,
    };
    let spread = digits + 1;
    format!("{median:.digits$} ±{:.spread$}", estimates.median_abs_dev.point_estimate)
}

/// A guide with its tables as they were measured.
fn renewed(name: &str, text: &str, measured: &Measured) -> Result<String> {
    let mut renewed = String::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        renewed += line;
        renewed.push('\n');
        let Some(what) = line.strip_prefix("<!-- bench ").and_then(|rest| rest.strip_suffix(" -->")) else { continue };
        let place = || format!("{name}:{}", number + 1);
        let [group, columns, rows] = what.split(" | ").collect::<Vec<_>>()[..] else {
            bail!("{}: expected `<!-- bench GROUP | COLUMN, ... | ROW, ... -->`", place());
        };
        let columns: Vec<&str> = if columns == "-" { vec![""] } else { columns.split(", ").collect() };
        let rows: Vec<&str> = rows.split(", ").collect();
        renewed += &measured.table(group, &columns, &rows).with_context(place)?;
        renewed.push('\n');
        let end = lines.find(|(_, line)| *line == "<!-- end -->");
        ensure!(end.is_some(), "{}: there is no `<!-- end -->` behind it", place());
        renewed += "<!-- end -->\n";
    }
    Ok(renewed)
}

fn main() -> Result<()> {
    let guides: Vec<String> = env::args().skip(1).collect();
    ensure!(!guides.is_empty(), "expected the guides whose tables are to be renewed");
    let measured = Measured::read(Path::new("target/criterion"))?;
    for guide in guides {
        let text = fs::read_to_string(&guide).with_context(|| guide.clone())?;
        fs::write(&guide, renewed(&guide, &text, &measured)?)?;
    }
    Ok(())
}
