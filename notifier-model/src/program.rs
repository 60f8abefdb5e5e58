//! Programs: what memory management does on each CPU, and what devices do meanwhile.

use core::ops::RangeInclusive;

use lazytlb_mmu_notifier::former::Form;

use crate::names::Client;

/// One step of a task's script. Numbers are indices into the program's lists.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Statement {
    /// An invalidation begins, of the entries from one to another.
    Start(usize, usize),
    /// The same, which must not block. Where it is refused what follows is left out, up to its end.
    StartNonblock(usize, usize),
    /// The innermost invalidation ends.
    End,
    /// An entry is cleared, and the page that it mapped is in the task's hand: what was written goes with it.
    Zap(usize),
    /// The same; what was written is to be found in whatever the entry maps next.
    Clear(usize),
    /// An entry is set to map a page, writable.
    Set(usize, usize),
    /// An entry that maps a page is made read-only.
    Protect(usize),
    /// It is made writable.
    Unprotect(usize),
    /// The page in the task's hand is copied to another.
    Copy(usize),
    /// The task's reference to the page in its hand is given back; the last one frees it.
    Free,
    /// The page in the task's hand is written to the swap, as an entry's, if somebody has said that it was written; it is freed like that.
    PageOut(usize),
    /// An entry's page is taken away from all who map it, to be reclaimed, if those who keep reverse maps of their own can drop it.
    TryToUnmap(usize),
    /// An entry is write-protected, for those as well.
    PageMkclean(usize),
    /// Those drop the page in the task's hand.
    Evict,
    /// The page table is taken out of the one above it: nobody finds it any more.
    UnlinkTable,
    /// It is freed.
    FreeTable,
    /// The CPUs' TLBs are flushed of an entry, and those of devices that walk the same tables.
    FlushTlb(usize),
    /// Asks the devices whether an entry's page was accessed, and clears it.
    Age(usize),
    /// A CPU writes, or reads, through an entry.
    Store(usize),
    /// See [`Store`](Self::Store).
    Load(usize),
    /// A device's driver maps an entry for it, as its fault handler does: until it has, or nothing is there to map; so often at most, or it has
    /// waited for what is none of its business.
    Fault(usize, usize, Option<usize>),
    /// A device writes through its translation of an entry, if it has one.
    Write(usize, usize),
    /// A device reads through it.
    Read(usize, usize),
    /// A device's driver subscribes.
    Register(usize),
    /// It unsubscribes.
    Unregister(usize),
    /// A driver is found by its mm, and has one more user.
    Get(usize),
    /// One of them is given back. With the last one it is unsubscribed, and no longer called when those who wait have waited.
    Put(usize),
    /// A driver's region is moved, to the entries from one to another: it maps no others.
    Move(usize, usize, usize),
    /// Waits for all callbacks that run.
    Synchronize,
    /// The driver's part of it is freed.
    FreeDevice(usize),
    /// A user of the address space goes (mmput). With the last one all is unmapped, page by page, as in `exit_mmap`.
    Exit,
    /// A reference to the mm's struct.
    Mmgrab,
    /// It is given back.
    Mmdrop,
    /// A lock is taken.
    Lock(usize),
    /// It is released.
    Unlock(usize),
}

/// A device, and where it looks.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// How its driver keeps it right.
    pub client: Client,
    /// The entries that its driver has subscribed to, where it subscribes to some; those that it uses.
    pub entries: RangeInclusive<usize>,
    /// Whether it is subscribed at the start.
    pub subscribed: bool,
    /// Whether what it writes stays in a cache of its own until that is written back: by its driver, or whenever hardware likes.
    pub cached: bool,
    /// The entries that it maps at the start.
    pub mapped: Vec<usize>,
}

/// An address space, and who uses it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Program {
    /// The name of the program.
    pub name: String,
    /// The form of the list, if it is not today's chain.
    pub form: Option<Form>,
    /// The entries of its page table, by name.
    pub ptes: Vec<String>,
    /// The pages, by name.
    pub pages: Vec<String>,
    /// What is mapped at the start: entries and pages.
    pub mapped: Vec<(usize, usize)>,
    /// The entries that are read-only at the start.
    pub protected: Vec<usize>,
    /// The devices.
    pub devices: Vec<Device>,
    /// The locks, by name.
    pub locks: Vec<String>,
    /// Those of them that who wants them may sleep for.
    pub mutexes: Vec<usize>,
    /// The tasks, by name; each has a CPU.
    pub tasks: Vec<String>,
    /// Each task's script.
    pub scripts: Vec<Vec<Statement>>,
}

impl Program {
    /// A statement as the language has it.
    pub fn text_of(&self, statement: Statement) -> String {
        use Statement::*;
        let pte = |one: usize| &self.ptes[one];
        let page = |one: usize| &self.pages[one];
        let device = |one: usize| &self.devices[one].name;
        match statement {
            Start(first, last) => format!("start {} {}", pte(first), pte(last)),
            StartNonblock(first, last) => format!("start-nonblock {} {}", pte(first), pte(last)),
            End => "end".into(),
            Zap(one) => format!("zap {}", pte(one)),
            Clear(one) => format!("clear {}", pte(one)),
            Set(one, to) => format!("set {} {}", pte(one), page(to)),
            Protect(one) => format!("protect {}", pte(one)),
            Unprotect(one) => format!("unprotect {}", pte(one)),
            Copy(to) => format!("copy {}", page(to)),
            Free => "free".into(),
            PageOut(one) => format!("page-out {}", pte(one)),
            TryToUnmap(one) => format!("try-to-unmap {}", pte(one)),
            PageMkclean(one) => format!("page-mkclean {}", pte(one)),
            Evict => "evict".into(),
            UnlinkTable => "unlink-table".into(),
            FreeTable => "free-table".into(),
            FlushTlb(one) => format!("flush-tlb {}", pte(one)),
            Age(one) => format!("age {}", pte(one)),
            Store(one) => format!("store {}", pte(one)),
            Load(one) => format!("load {}", pte(one)),
            Fault(by, one, None) => format!("fault {} {}", device(by), pte(one)),
            Fault(by, one, Some(most)) => format!("fault {} {} at-most {most}", device(by), pte(one)),
            Write(by, one) => format!("write {} {}", device(by), pte(one)),
            Read(by, one) => format!("read {} {}", device(by), pte(one)),
            Register(one) => format!("register {}", device(one)),
            Unregister(one) => format!("unregister {}", device(one)),
            Get(one) => format!("get {}", device(one)),
            Put(one) => format!("put {}", device(one)),
            Move(one, first, last) => format!("move {} {} {}", device(one), pte(first), pte(last)),
            Synchronize => "synchronize".into(),
            FreeDevice(one) => format!("free-device {}", device(one)),
            Exit => "exit".into(),
            Mmgrab => "mmgrab".into(),
            Mmdrop => "mmdrop".into(),
            Lock(one) => format!("lock {}", self.locks[one]),
            Unlock(one) => format!("unlock {}", self.locks[one]),
        }
    }
}
