package config

import (
	"time"
)

// SegmentSettings are the settings of a destination for segments.
type SegmentSettings struct {
	// RemoteFolder is where files are put. Default /uploads. A template does not
	// override it.
	RemoteFolder string
	// Rename says how files get their final names. Default RenamePlain. A template
	// does not override it.
	Rename Rename
	// PGP is nil when files are not encrypted. A template does not override it.
	PGP *PGP
	// ClientDomain begins every file name: letters, digits, dots and hyphens.
	ClientDomain string
	// Identifier that the files hold.
	Identifier Identifier
	File       FileFormat
	// Compression of the files. Default NoCompression.
	Compression Compression
	// SuccessFile has each file followed by an empty one of its name and ".DONE".
	// Default false.
	SuccessFile bool
	// RemoveOlder removes files of a segment's list before that still lie there.
	// Default true.
	RemoveOlder bool
	// SplitRows is the most rows of one file. Default and most: 500,000.
	SplitRows int
	// SplitMegabytes is the most millions of bytes of one file before compression
	// and encryption, to 4,096; zero, the default, for any number.
	SplitMegabytes int
	// RejectShare is the share of rows, 0 to 1, that may be rejected before the
	// job fails. Default 0.10.
	RejectShare float64
	// RejectedValues says how what was rejected is kept. Default Masked.
	RejectedValues RejectedValues
	// TimeZone gives the date in file names. Default UTC.
	TimeZone *time.Location
	Guards   Guards
}

// FileFormat is how rows are written.
type FileFormat struct {
	// Delimiter is between the fields of a row. Default comma. It is nothing that
	// a phone number or a host name has, nor a quote.
	Delimiter byte
	// Escape is the character that takes away the meaning of the next one; zero,
	// the default, for none: quotes within quotes are doubled.
	Escape byte
	// Quote says which fields are in quotes. Default QuoteSpecial.
	Quote QuoteMode
	// LineEnd ends each row: LF, the default, or CR and LF.
	LineEnd string
	// Header writes the names of the columns first. Default false.
	Header bool
	// RowNumber begins each row with its number in the file, from 1. Default false.
	RowNumber bool
}

// QuoteMode says which fields are in quotes.
type QuoteMode string

// The modes of quoting.
const (
	// QuoteAll quotes all fields.
	QuoteAll QuoteMode = "all"
	// QuoteNonNull quotes all fields that have a value.
	QuoteNonNull QuoteMode = "non_null"
	// QuoteSpecial quotes fields that could not be told apart otherwise.
	QuoteSpecial QuoteMode = "special"
	// QuoteNonNumeric quotes all fields but row numbers.
	QuoteNonNumeric QuoteMode = "non_numeric"
	// QuoteNone quotes nothing.
	QuoteNone QuoteMode = "none"
)

// Compression of files.
type Compression string

// The compressions.
const (
	NoCompression Compression = "none"
	Gzip          Compression = "gzip"
	Zip           Compression = "zip"
	Tar           Compression = "tar"
	// TarGzip is a tar archive in gzip.
	TarGzip Compression = "tgz"
)

// RejectedValues says how the values of rejected rows are kept.
type RejectedValues string

// The ways to keep them.
const (
	// Masked keeps enough to find the row in its source.
	Masked RejectedValues = "masked"
	// Full keeps them as the source has them.
	Full RejectedValues = "full"
)

// Rename says how files get their final names.
type Rename string

// The ways to name files.
const (
	// RenamePlain is the request of the protocol itself.
	RenamePlain Rename = "plain"
	// RenamePosix is the extension posix-rename@openssh.com.
	RenamePosix Rename = "posix"
	// RenameNone writes them under their final names.
	RenameNone Rename = "none"
)

// PGP says for whom files are encrypted.
type PGP struct {
	// Keys are paths of public key files, at least one.
	Keys []string
	// Armor writes ASCII armor instead of binary. Default false.
	Armor bool
	// Suffix is added to file names. Default .pgp.
	Suffix string
}

// Guards refuse an audience before anything of it is visible.
type Guards struct {
	// Shrink is the share, 0 to 1, by which a segment may be smaller than at its
	// last success. Default 0.5; 1 lets it shrink to one row.
	Shrink float64
}
