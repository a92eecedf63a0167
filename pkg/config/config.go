// Package config reads the one configuration file of both workers into an
// immutable value.
//
// Reading is strict. Unknown keys, values of the wrong type or out of range,
// duplicate ids, references to nothing and files that do not exist are found in
// one pass and reported together, each with its line, column and remedy. A file
// with a fault yields no Config. What is odd but may be meant is a warning.
//
// Secrets are references to a file or an environment variable, never written in
// the file. A secret that cannot be read is a warning here and blocks what needs
// it later: one broken credential must not keep the other destinations from
// working. Files that are not secret (known hosts, PGP keys) must exist.
//
// Every key with its meaning, unit, default and range is listed in README.md
// beside this file; a test keeps list and code the same.
package config

import (
	"slices"
	"time"
)

// The plugins of destinations, each worked by one worker.
const (
	// PluginSegments sends audiences as segments, by SFTP.
	PluginSegments = "attentive"
	// PluginAttributes sends attributes and opt-ins of subscribers, by HTTPS.
	PluginAttributes = "attentive-api"
)

// Config is a configuration without faults. It is read-only: everything that
// Load returned may be shared, and nothing in it changes but the values of
// secrets. A changed file makes a new Config (see Watch).
type Config struct {
	// Path is the file the configuration was read from.
	Path   string
	Broker Broker
	// OpsAddress is the host:port of the operations HTTP server. Default
	// 127.0.0.1:9464; port 0 takes a free one.
	OpsAddress string
	// SourcePrefixes are the URLs below which jobs may name sources. Default
	// none: only inline rows and objects of the broker are read.
	SourcePrefixes []string
	// SourceLimits are the most that one source may hold.
	SourceLimits SourceLimits
	// S3 is the service that s3 URLs are about.
	S3 S3
	// Dedup is the room for telling the people of segments apart.
	Dedup Dedup
	// HeldMegabytes bounds the messages that a worker takes from the broker at a
	// time, in megabytes of 1,048,576 bytes. Default 32, from 1 to 65536.
	HeldMegabytes int
	// Lease is how long an account stays with an owner that does not renew.
	// Default 15 s, from 2 s to 60 s.
	Lease time.Duration
	// Retention says how long is kept what has ended.
	Retention Retention
	// Credentials in the order of the file; ids are unique.
	Credentials []Credential
	// Destinations in the order of the file; ids are unique.
	Destinations []Destination

	warnings Faults
	seen     []observed // files that it was made from, for Watch
}

// Broker says how to reach NATS and how it keeps what it is given.
type Broker struct {
	// URL of the server, or several of one cluster, separated by commas.
	// Default nats://127.0.0.1:4222.
	URL string
	// CredentialsFile holds a NATS user's JWT and key, or its key alone (a path);
	// empty: none. The client reads it again at every connect.
	CredentialsFile string
	// TLS of the connection.
	TLS BrokerTLS
	// InboxPrefix begins the subjects that the broker answers to. Default
	// _INBOX.
	InboxPrefix string
	// Replicas of each stream and bucket: 1 (default), 3 or 5.
	Replicas int
	// ManageStreams is true (default) when the workers create and update
	// streams and buckets, false when they only check them.
	ManageStreams bool
	// Ceilings of what it keeps.
	Ceilings StreamCeilings
}

// StreamCeilings are the most that the broker keeps, in megabytes of 1,048,576
// bytes, from 1 to 1,048,576. The broker reserves them on its disk. Lowering one
// removes nothing but old events.
type StreamCeilings struct {
	// JobsMegabytes of jobs that wait; more are refused. Default 1,024.
	JobsMegabytes int
	// ProfilesMegabytes of profiles that wait; more are refused, and expansions wait.
	// Default 4,096, some 10 million profiles.
	ProfilesMegabytes int
	// DeadLettersMegabytes; what fails beyond them waits in its queue. Default 1,024.
	DeadLettersMegabytes int
	// EventsMegabytes, beyond which old events are forgotten. Default 256.
	EventsMegabytes int
}

// BrokerTLS names the files of a TLS connection, in PEM format. The client reads
// them again at every connect.
type BrokerTLS struct {
	// CAFile holds the certificates that the broker's is signed by; empty: those
	// of the system.
	CAFile string
	// CertificateFile and KeyFile are shown to a broker that asks; empty: none.
	CertificateFile, KeyFile string
}

// Retention says how long is kept what has ended. What a dead letter refers to is
// kept for as long as that.
type Retention struct {
	// Audiences of a job that has ended. Default 7 days, from 1 hour to 365 days.
	Audiences time.Duration
	// Rejects are rows that could not be sent. Default 30 days, from 1 day to 365.
	Rejects time.Duration
	// Ledger keeps what is known of a job that has ended, for as long as Audiences
	// at least. Default 90 days, from 7 to 3650. A job that is published again
	// after that is done again.
	Ledger time.Duration
	// Actions of operators. Default 365 days, from 30 to 3650.
	Actions time.Duration
	// Events of jobs. Default 30 days, from 1 to 365.
	Events time.Duration
}

// SourceLimits are the most that one source may hold. The defaults are the
// limits of the contract; they can only be lowered.
type SourceLimits struct {
	Rows int
	// Megabytes of 1,048,576 bytes, both as stored and unpacked.
	Megabytes int
}

// Dedup is the room for telling the people of a segment apart: in memory, and
// beyond it in encrypted temporary files.
type Dedup struct {
	// Megabytes of memory, of 1,048,576 bytes, of one segment at a time of each
	// destination. Default 256, from 16 to 65,536.
	Megabytes int
	// DiskMegabytes of files for all destinations of an account together. Default
	// 16,384, from 0 to 1,048,576.
	DiskMegabytes int
}

// S3 is a service that keeps objects in buckets. The credentials for it are those
// of the worker's environment, see package source.
type S3 struct {
	// Endpoint is its URL. Default https://s3.amazonaws.com.
	Endpoint string
	// Region of the buckets; empty (default): the service is asked.
	Region string
}

// Warnings returns what is allowed but perhaps not meant, in file order.
func (c *Config) Warnings() Faults { return slices.Clone(c.warnings) }

// Destination returns the destination with the id.
func (c *Config) Destination(id string) (Destination, bool) {
	i := slices.IndexFunc(c.Destinations, func(d Destination) bool { return d.ID == id })
	if i < 0 {
		return Destination{}, false
	}
	return c.Destinations[i], true
}

// Credential returns the credential with the id. That of a destination's
// Credential always exists.
func (c *Config) Credential(id string) (Credential, bool) {
	i := slices.IndexFunc(c.Credentials, func(k Credential) bool { return k.ID == id })
	if i < 0 {
		return Credential{}, false
	}
	return c.Credentials[i], true
}

// ForPlugin returns the destinations of the plugin, in file order.
func (c *Config) ForPlugin(plugin string) []Destination {
	var found []Destination
	for _, d := range c.Destinations {
		if d.Plugin == plugin {
			found = append(found, d)
		}
	}
	return found
}

// Accounts returns the accounts that the plugin's destinations use, in the order
// of their first destination.
func (c *Config) Accounts(plugin string) []Account {
	var accounts []Account
	for _, d := range c.ForPlugin(plugin) {
		credential, _ := c.Credential(d.Credential)
		key := credential.Account()
		i := slices.IndexFunc(accounts, func(a Account) bool { return a.Key == key })
		if i < 0 {
			i = len(accounts)
			accounts = append(accounts, Account{Key: key})
		}
		a := &accounts[i]
		a.Destinations = append(a.Destinations, d)
		if !slices.ContainsFunc(a.Credentials, func(k Credential) bool { return k.ID == credential.ID }) {
			a.Credentials = append(a.Credentials, credential)
		}
	}
	return accounts
}
