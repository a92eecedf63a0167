package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"attentive.internal/pkg/fault"
)

// Status codes of later drafts of the protocol, which servers of version 3 send
// nevertheless (draft-ietf-secsh-filexfer-13, section 9.1).
const (
	statusExists  = 11
	statusNoSpace = 14
	statusQuota   = 15
)

// accountError blocks the account.
func accountError(cfg Config, reason fault.Reason, format string, args ...any) error {
	return fault.Blockedf(fault.ScopeAccount, reason, "sftp %s: "+format, append([]any{cfg.Account()}, args...)...)
}

// folderError blocks the destination.
func folderError(cfg Config, reason fault.Reason, format string, args ...any) error {
	return fault.Blockedf(fault.ScopeDestination, reason, "sftp %s: folder %q: "+format, append([]any{cfg.Account(), cfg.Folder}, args...)...)
}

// unreachable is a host that cannot be reached or that went away.
func unreachable(cfg Config, what string, err error) error {
	return accountError(cfg, fault.Unreachable, "%s: %w; it is tried again by itself: if that lasts, check host name, port and firewall", what, opaque(err))
}

// broken is the error of a connection that ended for cause: its class, where it
// has one, else that of a host that went away.
func broken(cfg Config, what string, cause error) error {
	if f, classified := errors.AsType[*fault.Error](cause); classified {
		return &fault.Error{Class: f.Class, Scope: f.Scope, Reason: f.Reason, Wait: f.Wait, Err: fmt.Errorf("sftp %s: %s: %w", cfg.Account(), what, cause)}
	}
	return unreachable(cfg, what, cause)
}

// secretMissing is a secret that cannot be read. err must not quote it.
func secretMissing(cfg Config, name string, err error) error {
	return accountError(cfg, fault.SecretMissing, "%s: %w; correct the reference in the credential", name, err)
}

// opaque keeps the text of an error of the network but not its identity where
// that would mislead: an io.EOF in the chain reads as a clean end to readers.
func opaque(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the host closed the connection")
	}
	return err
}

// ended is the error of an operation that its context ended. A deadline means a
// host that is too slow; anything else is the caller's own wish.
func ended(ctx context.Context, cfg Config, what string) error {
	cause := context.Cause(ctx)
	_, classified := errors.AsType[*fault.Error](cause)
	if classified || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return broken(cfg, what, cause)
	}
	return fault.Interruptedf("sftp %s: %s: %w", cfg.Account(), what, cause)
}

// handshakeError says why SSH did not start.
func handshakeError(c *conn, known *knownHost, l *login, err error) error {
	cfg := known.cfg
	if known.refused != nil {
		return accountError(cfg, fault.HostKeyUnknown, "%w", known.refused)
	}
	if cause := c.cause(); cause != nil {
		return broken(cfg, "log in", cause)
	}
	if n, ok := errors.AsType[*ssh.AlgorithmNegotiationError](err); ok {
		if l.asked || n.What != "host key" {
			return accountError(cfg, fault.Unreachable, "%v; the host is too old or too strict for us", n)
		}
		return accountError(cfg, fault.HostKeyUnknown, "the host has no key of a configured type (%s), but %v; %s", known.types(), n.RequestedAlgorithms, known.remedy())
	}
	if l.asked {
		return accountError(cfg, fault.LogInRefused, "log in: %s", l.refusal())
	}
	return unreachable(cfg, "log in", err)
}

// classify gives an error of the server or the connection its consequence.
func (s *Session) classify(what string, err error) error {
	if _, done := errors.AsType[*fault.Error](err); done {
		return err
	}
	if cause := s.conn.cause(); cause != nil {
		return broken(s.cfg, what, cause)
	}
	if connectionLost(err) {
		s.lost.Store(true)
		return unreachable(s.cfg, what, errors.New("the server ended the session"))
	}
	switch {
	case errors.Is(err, fs.ErrExist):
	case errors.Is(err, os.ErrPermission):
		return folderError(s.cfg, fault.FolderUnusable, "%s: %w; ask the receiver for the right to write there", what, err)
	case statusIs(err, statusNoSpace, statusQuota):
		return storageFull(s.cfg, what, err)
	case statusIs(err, uint32(sftp.ErrSSHFxOpUnsupported)):
		return folderError(s.cfg, fault.Misconfigured, "%s: %w (%v); choose settings that do without it", what, errors.ErrUnsupported, err)
	}
	return fmt.Errorf("sftp %s: folder %q: %s: %w", s.cfg.Account(), s.cfg.Folder, what, err)
}

// storageFull is a server that takes no more bytes.
func storageFull(cfg Config, what string, err error) error {
	return folderError(cfg, fault.StorageFull, "%s: the server stores no more: %w; ask the receiver for space or a higher quota", what, err)
}

// connectionLost reports whether err says that the session is over.
func connectionLost(err error) bool {
	return errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, sftp.ErrSSHFxNoConnection) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// statusIs reports whether err is a status answer with one of the codes.
func statusIs(err error, codes ...uint32) bool {
	status, ok := errors.AsType[*sftp.StatusError](err)
	return ok && slices.Contains(codes, status.Code)
}
