//! A disk that runs full for real: a memory file system of a few megabytes.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted disk. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    place: PathBuf,
}

impl SmallDisk {
    /// Mounts one in a folder, which is made. `None` where mounting is not allowed: it takes root.
    pub(crate) fn mount(place: &Path, megabytes: u64) -> Option<SmallDisk> {
        std::fs::create_dir(place).unwrap();
        let size = format!("size={megabytes}m,mode=0700");
        let options = ["-t", "tmpfs", "-o", &size, "tidewater-test"];
        let mounted = Command::new("mount").args(options).arg(place).output().unwrap();
        if !mounted.status.success() {
            eprintln!("no disk of its own: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(SmallDisk { place: place.to_owned() })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.place
    }

    /// Makes it larger or smaller; not smaller than what it holds.
    pub fn resize(&self, megabytes: u64) {
        let size = format!("remount,size={megabytes}m");
        assert!(Command::new("mount").args(["-o", &size]).arg(&self.place).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that still ends has files open on it.
        if !Command::new("umount")
            .arg("--lazy")
            .arg(&self.place)
            .status()
            .is_ok_and(|status| status.success())
        {
            eprintln!("{} stays mounted", self.place.display());
        }
    }
}
