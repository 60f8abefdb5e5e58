//! Tables as criterion's files have them; mistakes with their place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder in which two benches were run, one of them twice.
fn measured(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let bench = |path: &str, ids: &str, median: f64| {
        let folder = folder.join("target/criterion").join(path);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("benchmark.json"), format!("{{{ids}}}")).unwrap();
        let estimate = |value: f64| format!(r#"{{"point_estimate": {value}, "standard_error": 0.1}}"#);
        let estimates =
            format!(r#"{{"median": {}, "median_abs_dev": {}}}"#, estimate(median), estimate(median / 100.0));
        fs::write(folder.join("estimates.json"), estimates).unwrap();
    };
    let vector = r#""group_id": "pair", "function_id": "Mutex<Vec>", "value_str": "4""#;
    bench("pair/Mutex_Vec_/4/base", vector, 1000.0);
    bench("pair/Mutex_Vec_/4/new", vector, 31.4159);
    bench("pair/hazards/1/new", r#""group_id": "pair", "function_id": "hazards", "value_str": "1""#, 0.5);
    bench("alone/new", r#""group_id": "alone", "function_id": "load and branch", "value_str": null"#, 1.25);
    folder
}

/// What becomes of a guide, or what is said instead.
fn renewed(name: &str, guide: &str) -> Result<String, String> {
    let folder = measured(name);
    fs::write(folder.join("guide.md"), guide).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_lazytlb-bench-tables")).arg("guide.md").current_dir(&folder).output();
    let run = run.unwrap();
    let now = fs::read_to_string(folder.join("guide.md")).unwrap();
    if run.status.success() {
        return Ok(now);
    }
    assert_eq!(now, guide, "it is left as it was");
    Err(String::from_utf8(run.stderr).unwrap())
}

const PAIR: &str = "<!-- bench pair | 1, 4 | hazards, Mutex<Vec> -->";

#[test]
fn what_was_measured_last_is_written() {
    let guide = format!(
        "Before.\n{PAIR}\n| old |\n<!-- end -->\n\n<!-- bench alone | - | load and branch -->\n<!-- end -->\nBehind.\n"
    );
    let expected = format!(
        "Before.\n{PAIR}\n\
         |              | 1           | 4       |\n\
         |--------------|-------------|---------|\n\
         | `hazards`    | 0.50 ±0.005 |         |\n\
         | `Mutex<Vec>` |             | 31 ±0.3 |\n\
         <!-- end -->\n\n<!-- bench alone | - | load and branch -->\n\
         |                   | ns        |\n\
         |-------------------|-----------|\n\
         | `load and branch` | 1.2 ±0.01 |\n\
         <!-- end -->\nBehind.\n"
    );
    let written = renewed("written", &guide).unwrap();
    assert_eq!(written, expected);
    assert_eq!(renewed("written", &written).unwrap(), expected, "once more is the same");
}

#[test]
fn mistakes_have_their_place() {
    for (name, guide, message) in [
        ("unended", format!("a\n{PAIR}\n| old |\n"), "guide.md:2: there is no `<!-- end -->` behind it"),
        ("short", "<!-- bench pair -->\n".into(), "guide.md:1: expected `<!-- bench GROUP |"),
        (
            "row",
            "<!-- bench pair | 1 | hazards, epochs -->\n<!-- end -->\n".into(),
            "nothing was measured of `pair/epochs`",
        ),
        (
            "column",
            "<!-- bench pair | 1, 5 | hazards -->\n<!-- end -->\n".into(),
            "nothing was measured in `pair` of `5`",
        ),
    ] {
        let said = renewed(name, &guide).unwrap_err();
        assert!(said.contains(message) && said.contains("guide.md:"), "{said}");
    }
}
