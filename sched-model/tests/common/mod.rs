//! What the tests over the bundled litmus files share.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lazytlb_machine::{Exploration, Kind, Limits, Reduction, Search};
use lazytlb_sched_model::{Litmus, Model, Setting};

/// All bundled tests, by name.
pub(crate) fn bundled() -> Vec<Litmus> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../litmus");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    files.sort();
    let parse = |file: &PathBuf| {
        let litmus = Litmus::parse(&std::fs::read_to_string(file).unwrap());
        let litmus = litmus.unwrap_or_else(|error| panic!("{}", error.in_file(&file.display().to_string())));
        assert_eq!(Some(litmus.program.name.as_str()), file.file_stem().and_then(|stem| stem.to_str()));
        litmus
    };
    files.iter().map(parse).collect()
}

/// All that can happen.
pub(crate) fn explore(litmus: &Litmus, setting: &Setting) -> Exploration {
    explore_by(litmus, setting, Reduction::Full)
}

/// The same, leaving out so much.
pub(crate) fn explore_by(litmus: &Litmus, setting: &Setting, reduction: Reduction) -> Exploration {
    let limits = Limits { stop_at_first: false, executions: 5_000_000, ..Limits::default() };
    Model::new(&litmus.program, setting).explore(Search::Exhaustive(reduction), limits, |_| {})
}

/// The kinds of what was found.
pub(crate) fn kinds(exploration: &Exploration) -> BTreeSet<Kind> {
    exploration.found.iter().map(|found| found.verdict.kind).collect()
}
