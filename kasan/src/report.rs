//! Reports in the order and the words that kernel developers know (`mm/kasan/report.c`, `report_generic.c`).
//!
//! Frames are real functions with file and line instead of offsets into a binary, and the tracks say CPU and step, as
//! `CONFIG_KASAN_EXTRA_INFO` does with CPU and time. What the kernel cannot know follows after its part, as [`Note`]s.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::shadow::{Access, Addr, BugType, GRANULE};
use crate::track::{Frame, Track};
use crate::window::{BadFree, Kasan, ObjectInfo, SlotState};

/// The title of a report, after `BUG: KASAN: `.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Title {
    /// A bad access, with its size.
    Access {
        /// What it is.
        bug: BugType,
        /// Read or write.
        access: Access,
        /// In bytes.
        size: usize,
    },
    /// A bad free.
    Free(BadFree),
    /// A rule that is not the allocator's: a title of its own, and the words for what was done, such as
    /// `Page walk of table`.
    Rule {
        /// The title.
        title: &'static str,
        /// What was done, before ` at addr`.
        action: &'static str,
    },
}

impl fmt::Display for Title {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Title::Access { bug, .. } => bug.fmt(f),
            Title::Free(bug) => bug.fmt(f),
            Title::Rule { title, .. } => f.write_str(title),
        }
    }
}

/// A section after the kernel's part: a heading and its lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// The heading, without a colon.
    pub heading: String,
    /// Its lines.
    pub lines: Vec<String>,
}

/// One report, ready to be printed. The first line can be searched for; there is no time or host address in it.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// Where the objects and the shadow are.
    pub kasan: &'a Kasan,
    /// What happened.
    pub title: Title,
    /// Where.
    pub addr: Addr,
    /// Who did it, and by which calls.
    pub by: &'a Track,
    /// What the kernel cannot know.
    pub notes: &'a [Note],
}

const LINE: &str = "==================================================================";

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{LINE}")?;
        self.header(f)?;
        writeln!(f, "\nCPU: {} PID: {} Comm: {}", self.by.cpu, self.by.pid, self.by.comm)?;
        writeln!(f, "Call Trace:")?;
        call_trace(f, &self.by.frames)?;
        writeln!(f)?;
        if let Some(object) = self.kasan.object_at(self.addr) {
            history(f, &object)?;
            self.object(f, &object)?;
            writeln!(f)?;
        }
        self.memory_state(f)?;
        writeln!(f, "{LINE}")?;
        for note in self.notes {
            writeln!(f, "\n{}:", note.heading)?;
            for line in &note.lines {
                writeln!(f, " {line}")?;
            }
        }
        Ok(())
    }
}

impl Report<'_> {
    fn header(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let here = self.by.frames.first();
        write!(f, "BUG: KASAN: {} in ", self.title)?;
        match here {
            Some(frame) => writeln!(f, "{frame}")?,
            None => writeln!(f, "{}", self.by.comm)?,
        }
        match self.title {
            Title::Access { access, size, .. } => write!(f, "{access} of size {size}")?,
            Title::Free(_) => f.write_str("Free of")?,
            Title::Rule { action, .. } => f.write_str(action)?,
        }
        let at = if matches!(self.title, Title::Free(_)) { "" } else { " at" };
        writeln!(f, "{at} addr {} by task {}/{}", self.addr, self.by.comm, self.by.pid)
    }

    fn object(&self, f: &mut fmt::Formatter<'_>, object: &ObjectInfo<'_>) -> fmt::Result {
        writeln!(f, "The buggy address belongs to the object at {}", object.addr)?;
        writeln!(f, " which belongs to the cache {} of size {}", object.name, object.size)?;
        let (start, end) = (object.addr.0, object.addr.0 + object.size as u64);
        let (distance, relation) = match self.addr.0 {
            addr if addr < start => (start - addr, "to the left of"),
            addr if addr >= end => (addr - end, "to the right of"),
            addr => (addr - start, "inside of"),
        };
        let state = if object.state == SlotState::Live { "allocated" } else { "freed" };
        writeln!(f, "The buggy address is located {distance} bytes {relation}")?;
        writeln!(f, " {state} {}-byte region [{}, {})", object.size, Addr(start), Addr(end))
    }

    /// The shadow of the rows around the bad address: 16 bytes a row, for 128 bytes of memory.
    fn memory_state(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ROW: u64 = 16 * GRANULE as u64;
        writeln!(f, "Memory state around the buggy address:")?;
        let guilty = self.addr.0 / ROW * ROW;
        for row in (0..5).filter_map(|row| (guilty + row * ROW).checked_sub(2 * ROW)) {
            if self.kasan.shadow_at(Addr(row)).is_none() {
                continue;
            }
            let mark = if row == guilty { '>' } else { ' ' };
            write!(f, "{mark}{}:", Addr(row))?;
            for granule in 0..16 {
                match self.kasan.shadow_at(Addr(row + granule * GRANULE as u64)) {
                    Some(shadow) => write!(f, " {shadow:02x}")?,
                    None => write!(f, "   ")?,
                }
            }
            writeln!(f)?;
            if row == guilty {
                // Mark, 16 digits, colon, blank: the first pair of digits stands in column 19, counted from 0.
                let column = 19 + 3 * ((self.addr.0 - row) / GRANULE as u64) as usize;
                writeln!(f, "{:column$}^", "")?;
            }
        }
        Ok(())
    }
}

/// The frames, with markers around those that ran in an interrupt.
fn call_trace(f: &mut fmt::Formatter<'_>, frames: &[Frame]) -> fmt::Result {
    let irq = frames.iter().rposition(|frame| frame.irq).map_or(0, |last| last + 1);
    for (marker, part) in [("IRQ", &frames[..irq]), ("TASK", &frames[irq..])] {
        if part.is_empty() && (marker == "IRQ" || irq > 0) {
            continue;
        }
        writeln!(f, " <{marker}>")?;
        part.iter().try_for_each(|frame| writeln!(f, " {frame}"))?;
        writeln!(f, " </{marker}>")?;
    }
    Ok(())
}

fn history(f: &mut fmt::Formatter<'_>, object: &ObjectInfo<'_>) -> fmt::Result {
    if let Some(track) = object.allocated {
        print_track(f, "Allocated by task", track)?;
    }
    if let Some(track) = object.freed {
        print_track(f, "Freed by task", track)?;
    }
    let headings = ["Last potentially related work creation", "Second to last potentially related work creation"];
    for (heading, track) in headings.into_iter().zip(object.aux) {
        writeln!(f, "{heading}:")?;
        track.frames.iter().try_for_each(|frame| writeln!(f, " {frame}"))?;
        writeln!(f)?;
    }
    Ok(())
}

fn print_track(f: &mut fmt::Formatter<'_>, heading: &str, track: &Track) -> fmt::Result {
    writeln!(f, "{heading} {} on cpu {} at step {}:", track.pid, track.cpu, track.step)?;
    track.frames.iter().try_for_each(|frame| writeln!(f, " {frame}"))?;
    writeln!(f)
}
