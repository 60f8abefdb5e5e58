//! `lazytlb lazy-mmu`: scripts from files and standard input, and what is printed of them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use snapbox::cmd::cargo_bin;
use snapbox::{assert_data_eq, str};

/// Runs a script from standard input.
fn lazy_mmu(script: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(cargo_bin!("lazytlb"));
    let command = command.arg("lazy-mmu").args(arguments).env("NO_COLOR", "1");
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Runs the command where the repository is.
fn lazytlb<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    Command::new(cargo_bin!("lazytlb")).args(arguments).current_dir(root).env("NO_COLOR", "1").output().unwrap()
}

fn stdout(output: &Output) -> &str {
    core::str::from_utf8(&output.stdout).unwrap()
}

/// One object for each line that has a call.
fn json(script: &str, arguments: &[&str]) -> Vec<Value> {
    let output = lazy_mmu(script, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The script of a conformance program.
fn script(calls: &str) -> String {
    let call = |word: &str| match word {
        "e" => "enable\n",
        "d" => "disable\n",
        "p" => "pause\n",
        "r" => "resume\n",
        "+" => "irq-enter\n",
        "-" => "irq-exit\n",
        _ => panic!("{word}"),
    };
    calls.split_whitespace().map(call).collect()
}

#[test]
fn a_table_shows_each_line() {
    let output = lazy_mmu("# KASAN\nenable\nset 0x1000 5\n\npause\nget 0x1000\nresume\ndisable\n", &[]);
    assert!(output.status.success());
    assert_data_eq!(
        stdout(&output),
        str![[r#"
 line  call          task  enable  pause  interrupt  active  callbacks  hardware  warnings  value 
 2     enable        0     1       0                 yes     enter                                
 3     set 0x1000 5  0     1       0                 yes                                          
 5     pause         0     1       1                         leave                                
 6     get 0x1000    0     1       1                                                        0x5   
 7     resume        0     1       0                 yes     enter                                
 8     disable       0     0       0                         leave                                

"#]]
    );
}

#[test]
fn json_has_an_object_for_each_line() {
    let rows = json("enable\n\nset 16 5 # changes\nget 0x10\ndisable\ndisable", &[]);
    let of = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let expected = [
        r#"{"line":1,"call":"enable","enable":1,"pause":0,"in_interrupt":false,"active":true,"callbacks":["enter"],"warnings":[],"value":null}"#,
        r#"{"line":3,"call":"set","enable":1,"pause":0,"in_interrupt":false,"active":true,"callbacks":[],"warnings":[],"value":null}"#,
        r#"{"line":4,"call":"get","enable":1,"pause":0,"in_interrupt":false,"active":true,"callbacks":[],"warnings":[],"value":5}"#,
        r#"{"line":5,"call":"disable","enable":0,"pause":0,"in_interrupt":false,"active":false,"callbacks":["leave"],"warnings":[],"value":null}"#,
        r#"{"line":6,"call":"disable","enable":255,"pause":0,"in_interrupt":false,"active":true,"callbacks":["flush"],"warnings":["disable without enable"],"value":null}"#,
    ];
    assert_eq!(rows, expected.map(of));
}

#[test]
fn an_interrupt_sees_the_mode_off_and_changes_nothing() {
    let rows = json(&script("e + e d p r - d"), &[]);
    let in_interrupt: Vec<&Value> = rows.iter().filter(|row| row["in_interrupt"] == true).collect();
    assert_eq!(in_interrupt.len(), 5);
    for row in in_interrupt {
        assert_eq!((&row["enable"], &row["pause"], &row["active"]), (&1.into(), &0.into(), &false.into()));
        assert_eq!(row["callbacks"], serde_json::json!([]));
    }
    assert_eq!(rows[6]["active"], true, "it is on again behind the interrupt");
}

#[test]
fn each_task_has_a_state_of_its_own() {
    let rows = json("enable\nswitch\nget 1\nswitch\ndisable\n", &[]);
    let seen: Vec<(&Value, &Value)> = rows.iter().map(|row| (&row["enable"], &row["active"])).collect();
    let (on, off) = ((&1.into(), &true.into()), (&0.into(), &false.into()));
    assert_eq!(seen, [on, off, off, on, off]);
}

#[test]
fn generations_differ() {
    let last = |generation: &str| json(&script("e e d p e"), &["--generation", generation]).pop().unwrap();
    assert_eq!(last("merged")["callbacks"], serde_json::json!([]));
    assert_eq!(last("stack")["callbacks"], serde_json::json!(["enter"]), "it knows no pause");
    assert_eq!(last("v4")["warnings"], serde_json::json!(["call while paused, or resume while not"]));
    assert_eq!(last("g4"), last("merged"), "generations have short names too");
}

#[test]
fn a_kernel_that_stops_is_status_1() {
    let output = lazy_mmu("enable\ndisable\ndisable\nenable\n", &["--generation", "v3", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output).lines().count(), 3, "nothing runs behind it");
    assert!(stdout(&output).contains(r#"["BUG: disable without enable"]"#));
    assert_data_eq!(
        String::from_utf8(output.stderr).unwrap(),
        str![[r#"
-:3:1: the kernel stops here (BUG)

"#]]
    );
}

#[test]
fn a_bad_line_is_an_error_with_its_place() {
    let output = lazy_mmu("enable\n\n  disbale # oops\n", &["--json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty(), "nothing half-written");
    assert_data_eq!(
        String::from_utf8(output.stderr).unwrap(),
        str![[r#"
error: -:3:3: there is no call `disbale`; there are: enable, enable-with-ptes, disable, pause, resume, irq-enter, irq-exit, switch, set, get, flush
      disbale # oops
      ^

"#]]
    );
    let missing = lazy_mmu("", &["nowhere.script"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).starts_with("error: nowhere.script: "));
}

/// Checks a guide's blocks, and says how many there are.
fn blocks_shown(guide: &str) -> usize {
    let mut lines = guide.lines();
    let mut shown = 0;
    while let Some(line) = lines.next() {
        let Some(arguments) = line.strip_prefix("$ cargo run --release -- ") else { continue };
        let output: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let printed = stdout(&lazytlb(arguments.split(' '))).to_owned();
        let mut printed: Vec<&str> = printed.lines().map(str::trim_end).collect();
        match arguments.split_once(' ') {
            // Its last column is a time.
            Some(("litmus", _)) => {
                let untimed = |lines: Vec<&str>| -> Vec<Vec<String>> {
                    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
                    lines
                        .into_iter()
                        .map(words)
                        .map(|mut words| (words.pop(), words).1)
                        .filter(|words| !words.is_empty())
                        .collect()
                };
                assert_eq!(untimed(output), untimed(printed), "{arguments}");
            }
            // Its beginning.
            Some(("bugs", _)) => {
                printed.truncate(output.len());
                assert_eq!(output, printed, "{arguments}");
            }
            _ => assert_eq!(output, printed, "{arguments}"),
        }
        shown += 1;
    }
    shown
}

#[test]
fn the_guides_show_what_is_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let notifiers = fs::read_to_string(root.join("docs/MMU-NOTIFIER.md")).unwrap();
    assert_eq!(blocks_shown(&notifiers), 1);
    let guide = fs::read_to_string(root.join("docs/LAZY-MMU.md")).unwrap();
    assert_eq!(blocks_shown(&guide), 5);
    assert!(guide.contains(include_str!("../../lazy-mmu/scripts/kasan.script").trim_end()));
    assert!(guide.contains(include_str!("../../litmus/lazy-mmu/lazy-kasan-populate-pause.litmus").trim_end()));
}

#[test]
fn help_lists_the_calls_and_impossible_switches_are_warned_of() {
    let help = lazytlb(["lazy-mmu", "--help"]);
    for call in ["enable-with-ptes ADDR END", "irq-enter, irq-exit", "set ADDR VAL"] {
        assert!(stdout(&help).contains(call), "{call}");
    }
    let script = "enable\nswitch\n";
    let warnings = |backend: &str| json(script, &["--backend", backend])[1]["warnings"].as_array().unwrap().len();
    assert_eq!(
        ["powerpc-hash", "sparc64", "s390", "arm64", "xen-x4", "powerpc-radix"].map(warnings),
        [1, 1, 1, 0, 0, 0]
    );
}

#[test]
fn all_generations_are_compared() {
    let output = lazytlb(["lazy-mmu", "--conformance", "--json"]);
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let of = |generation: &str, program: &str| {
        let is = |row: &&Value| row["generation"] == generation && row["program"] == program;
        rows.iter().find(is).unwrap()["verdict"].as_str().unwrap().to_owned()
    };
    assert_eq!(of("merged", "KUnit"), "right");
    assert_eq!(of("hooks-strict", "T1"), "warns");
    assert_eq!(of("v3", "T14"), "stops");
    assert_eq!(of("stack", "T2"), "STAYS ON");
}

#[test]
fn batching_is_counted() {
    let output = lazytlb(["lazy-mmu", "--batching", "--json"]);
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.len(), 30);
    for row in rows {
        let (section, one_by_one) = (row["in_a_section"].as_u64().unwrap(), row["one_by_one"].as_u64().unwrap());
        assert!(section <= one_by_one && (row["entries"] != 1 || section == one_by_one), "{row}");
    }
}

#[test]
fn back_ends_defer_and_read_as_they_do() {
    let script = "enable-with-ptes 0 8\nset 1 1\nget 1\ndisable\nget 1\n";
    let read = |backend: &str| {
        let rows = json(script, &["--backend", backend]);
        (rows[2]["value"].clone(), rows[4]["value"].clone())
    };
    for backend in ["none", "arm64", "powerpc-hash", "powerpc-radix", "sparc64", "s390"] {
        assert_eq!(read(backend), (1.into(), 1.into()), "{backend}");
    }
    for backend in ["xen-x1", "xen-x2", "xen-x3", "xen-x4", "xen-x5"] {
        assert_eq!(read(backend), (0.into(), 1.into()), "{backend}");
    }
    assert_eq!(json(script, &[])[0]["callbacks"], serde_json::json!(["enter_with_ptes"]));
}

#[test]
fn a_switch_takes_the_mode_off_the_cpu_under_xen() {
    let rows =
        json("enable\nset 1 1\nswitch\nget 1\nswitch\nset 1 2\nget 1\ndisable\nget 1\n", &["--backend", "xen-x5"]);
    let callbacks = |line: usize| rows[line - 1]["callbacks"].clone();
    assert_eq!((callbacks(3), callbacks(5)), (serde_json::json!(["leave"]), serde_json::json!(["enter"])));
    let read: Vec<&Value> = rows.iter().filter(|row| row["call"] == "get").map(|row| &row["value"]).collect();
    assert_eq!(read, [1, 1, 2], "nothing is left behind, and the section goes on afterwards");
    // Nesting by the hooks alone is what stopped it in 2023.
    let output = lazy_mmu("enable\nenable\n", &["--backend", "xen-x1", "--generation", "hooks"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("BUG: entered while in the mode"));
}

#[test]
fn what_a_back_end_cannot_do_is_refused() {
    let refused = |script: &str, arguments: &[&str]| {
        let output = lazy_mmu(script, arguments);
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = refused("enable\n", &["--backend", "xen-x5", "--generation", "v4"]);
    assert!(error.contains("only the merged generation can"), "{error}");
    let error = refused("enable\n set 1 0xffffffffffffffff\n", &["--backend", "s390"]);
    assert!(error.starts_with("error: -:2:8: s390 marks empty slots"), "{error}");
}
