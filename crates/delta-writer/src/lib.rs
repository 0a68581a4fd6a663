//! Arrow row changes to Delta Lake versions: key index, deletion vectors, commits.

pub mod deletion_vector;
pub mod key_index;
