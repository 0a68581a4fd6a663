//! The template: a fresh cluster in the store, of which every new project is a copy.
//!
//! `initdb` takes seconds of a machine's time and makes 40 MB. It runs once for each major version and storage;
//! its cluster is put into the store as a project of its own, stopped in order. Making a project is then what
//! making a branch is: one manifest that names the template's layers, and one small chunk of WAL that holds the
//! template's shutdown checkpoint. A project that nobody uses costs those two objects.
//!
//! All projects of a storage share what the copy shares: the system identifier, and the password of
//! the core's own role, which is let in through the compute's private socket only.

use std::path::Path;

use crate::compute_process::{ComputeDirectory, Purpose, Server};
use crate::installation::Installation;
use crate::provision::{UNCLAIMED_DATABASE, quote_identifier};
use crate::{CoreError, Result, initdb, private_file};
