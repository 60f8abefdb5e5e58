//! What batching saves: what hardware is asked for, counted.

use anyhow::Result;
use comfy_table::{Table, presets};
use lazytlb_lazy_mmu::conformance::Callback;
use lazytlb_toy_mmu::ToyMmu;
use serde::Serialize;

use super::backend::{BackEnd, Name};

/// How many entries are changed.
const SIZES: [usize; 6] = [1, 2, 4, 16, 64, 256];

/// The back ends, and what their hardware is asked for.
const BACK_ENDS: [(&str, Name, &str); 5] = [
    ("arm64", Name::Arm64, "pairs of barriers"),
    ("powerpc-hash", Name::PowerpcHash, "flushes of the hash table"),
    ("sparc64", Name::Sparc64, "flushes of the TSB, and of the TLBs"),
    ("xen-x5", Name::XenX5, "hypercalls"),
    ("s390", Name::S390, "instructions that may stop the machine"),
];

/// How often hardware is asked when so many entries are changed that are in use.
#[derive(Serialize)]
struct Counted {
    backend: &'static str,
    what: &'static str,
    entries: usize,
    in_a_section: usize,
    one_by_one: usize,
}

/// Prints the table.
pub(super) fn run(json: bool) -> Result<bool> {
    let counted = |(backend, name, what): (&'static str, Name, &'static str)| {
        SIZES.map(|entries| Counted {
            backend,
            what,
            entries,
            in_a_section: count(name, entries, true),
            one_by_one: count(name, entries, false),
        })
    };
    let counted = BACK_ENDS.map(counted);
    if json {
        crate::print_json(&counted.iter().flatten().collect::<Vec<_>>())?;
        return Ok(true);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let sizes = SIZES.map(|entries| entries.to_string());
    table.set_header(["entries".to_owned()].into_iter().chain(sizes).chain(["of".to_owned()]));
    for row in counted {
        let cells = row.iter().map(|counted| format!("{} / {}", counted.in_a_section, counted.one_by_one));
        table.add_row([row[0].backend.to_owned()].into_iter().chain(cells).chain([row[0].what.to_owned()]));
    }
    crate::print(&format!("In a section / one by one.\n\n{table}\n"))?;
    Ok(true)
}

/// How often hardware is asked when entries are changed.
fn count(name: Name, entries: usize, in_a_section: bool) -> usize {
    let backend: Box<dyn BackEnd> = name.on_new_machine();
    let change = |value: usize| (0..entries).for_each(|addr| backend.set(addr, value));
    change(1);
    ToyMmu.ops();
    if in_a_section {
        backend.callback(Callback::EnterWithPtes, Some(0..entries));
        ToyMmu.set_active(true);
    }
    change(2);
    if in_a_section {
        ToyMmu.set_active(false);
        backend.callback(Callback::Leave, None);
    }
    ToyMmu.ops().len()
}
