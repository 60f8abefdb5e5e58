//! Page tables as arena objects: a root, one middle level, a leaf, and the frame that it maps.
//!
//! They are made of simulated words, so the hardware's walk and the kernel's changes are accesses like any other, and a
//! freed table is a freed object.

use core::panic::Location;
use core::ptr::{NonNull, null_mut};

use lazytlb_core::memory::{AtomicWord, LocalWord, Ordering::*};
use lazytlb_core::platform::Root;
use lazytlb_machine::{Cache, Machine, ObjectKind, SimLocal, SimWord};

use crate::watch::Watch;

/// How many entries a table has: as many as a walk can tell apart here.
const ENTRIES: usize = 2;

/// A page table of any level.
#[derive(Debug)]
pub struct Table {
    entries: [SimWord<*mut Table>; ENTRIES],
}

impl Table {
    fn new() -> Self {
        Table { entries: [(); ENTRIES].map(|()| AtomicWord::new(null_mut())) }
    }

    /// Unhooks all that is below.
    #[track_caller]
    pub(crate) fn clear(&self) {
        for entry in &self.entries {
            if !entry.load(Relaxed).is_null() {
                entry.store(null_mut(), Relaxed);
            }
        }
    }

    /// The word that the one page's walk goes through.
    pub(crate) fn first(&self) -> &SimWord<*mut Table> {
        &self.entries[0]
    }

    /// The tables below, as a check sees them.
    pub(crate) fn below(&self) -> impl Iterator<Item = *mut Table> + '_ {
        self.entries.iter().map(|entry| entry.load(Relaxed)).filter(|table| !table.is_null())
    }
}

/// The tables of one mm, beside its root. Words of the task that builds or tears down, so local.
#[derive(Debug)]
pub struct Tables {
    middle: SimLocal<*mut Table>,
    leaf: SimLocal<*mut Table>,
    frame: SimLocal<*mut Table>,
    /// The tag that the kernel gives an mm at this place for its life.
    tag: usize,
}

impl Tables {
    pub(crate) fn none(tag: usize) -> Self {
        let null = || LocalWord::new(null_mut());
        Tables { middle: null(), leaf: null(), frame: null(), tag }
    }

    /// Hooks fresh tables up so that they map one page, or none. Not a step: nobody else can see them yet.
    pub(crate) fn build(&self, Fresh { root, below }: Fresh) -> Root {
        let whole = Root(root.as_ptr().expose_provenance());
        let Some([middle, leaf, frame]) = below else { return whole };
        for (upper, lower) in [(root, middle), (middle, leaf), (leaf, frame)] {
            // SAFETY: in the arena, just allocated.
            let upper = unsafe { upper.as_ref() };
            upper.entries[0].poke(lower.as_ptr());
            upper.entries[1].poke(null_mut());
        }
        for (word, table) in [(&self.middle, middle), (&self.leaf, leaf), (&self.frame, frame)] {
            word.poke(table.as_ptr());
        }
        whole
    }

    /// The frame that holds the one page; for those who watch from outside.
    pub(crate) fn frame(&self) -> *mut Table {
        self.frame.peek()
    }

    /// Unhooks the leaf and the frame from the table above. Says whether there was a leaf.
    #[track_caller]
    pub(crate) fn unhook_leaf(&self) -> bool {
        let (Some(middle), false) = (NonNull::new(self.middle.get()), self.leaf.get().is_null()) else { return false };
        // SAFETY: in the arena; whether it is allocated is what the machine checks.
        unsafe { middle.as_ref() }.clear();
        true
    }

    /// Unmaps the page: clears its entry in the leaf. Says whether there was one.
    #[track_caller]
    pub(crate) fn clear_page(&self) -> bool {
        let (Some(leaf), false) = (NonNull::new(self.leaf.get()), self.frame.get().is_null()) else { return false };
        // SAFETY: in the arena; whether it is allocated is what the machine checks.
        unsafe { leaf.as_ref() }.clear();
        true
    }

    /// The mm's own tag.
    pub(crate) fn tag(&self) -> usize {
        self.tag
    }

    /// Where the books have the page; null if it is not mapped.
    pub(crate) fn page(&self) -> &SimLocal<*mut Table> {
        &self.frame
    }

    /// Frees the frame, which no table has an entry for any more.
    pub(crate) fn free_page(&self, watch: &Watch, at: &'static Location<'static>) {
        free(&self.frame, watch, at);
    }

    /// Frees the leaf, which was unhooked.
    pub(crate) fn free_leaf(&self, watch: &Watch, at: &'static Location<'static>) {
        free(&self.leaf, watch, at);
    }

    /// Frees all but the root.
    pub(crate) fn free_below_root(&self, watch: &Watch, at: &'static Location<'static>) {
        for table in [&self.frame, &self.leaf, &self.middle] {
            if let Some(table) = NonNull::new(table.get()) {
                watch.free_table(table, at);
            }
        }
    }
}

fn free(word: &SimLocal<*mut Table>, watch: &Watch, at: &'static Location<'static>) {
    if let Some(table) = NonNull::new(word.get()) {
        word.set(null_mut());
        watch.free_table(table, at);
    }
}

/// Tables that were just allocated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fresh {
    root: NonNull<Table>,
    /// A middle table, a leaf and a frame, where an mm maps a page.
    below: Option<[NonNull<Table>; 3]>,
}

/// Where page tables come from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableCaches {
    root: Cache<Table>,
    below: Option<[Cache<Table>; 3]>,
}

const NAMES: [(&str, ObjectKind); 4] =
    [("pgd", ObjectKind::Table), ("pmd", ObjectKind::Table), ("pte", ObjectKind::Table), ("frame", ObjectKind::Frame)];

impl TableCaches {
    /// Caches for the tables of `mms` address spaces, which map a page each or are roots and nothing else.
    pub(crate) fn new(machine: &Machine, mms: usize, maps: bool) -> Self {
        let cache = |(name, kind)| machine.create_cache(name, kind, mms, |_| Table::new());
        let [root, below @ ..] = NAMES;
        TableCaches { root: cache(root), below: maps.then(|| below.map(cache)) }
    }

    /// Takes one table of each level.
    pub(crate) fn alloc(&self, alloc: impl Fn(Cache<Table>) -> NonNull<Table>) -> Fresh {
        Fresh { root: alloc(self.root), below: self.below.map(|below| below.map(&alloc)) }
    }

    /// The root in slot `index`.
    pub(crate) fn root(&self, machine: &Machine, index: usize) -> *const Table {
        machine.slot(self.root, index).as_ptr()
    }

    /// The root table of `init_mm`, which maps nothing that could be freed.
    pub(crate) fn init_root(machine: &Machine) -> Root {
        let table: *const Table = machine.place("swapper_pg_dir", ObjectKind::Table, Table::new());
        Root(table.expose_provenance())
    }
}
