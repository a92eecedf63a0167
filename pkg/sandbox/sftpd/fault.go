package sftpd

import (
	"encoding/binary"
	"io"
	"net"
	"slices"
	"syscall"

	"golang.org/x/crypto/ssh"
)

// Misbehaviour is what the server does wrong. The zero value is none.
type Misbehaviour struct {
	// RefuseLogin refuses every log-in.
	RefuseLogin bool `json:"refuse_login"`
	// RefuseRename answers permission denied to every rename.
	RefuseRename bool `json:"refuse_rename"`
	// NoPosixRename neither announces nor knows posix-rename@openssh.com.
	NoPosixRename bool `json:"no_posix_rename"`
	// FullAfter is how many bytes can still be written before the disk is full.
	FullAfter *int64 `json:"full_after,omitempty"`
	// CutAfter is how many bytes are still written before that connection, once,
	// is cut.
	CutAfter *int64 `json:"cut_after,omitempty"`
}

// Misbehave replaces what is done wrong. Bytes are counted from now on.
func (s *Server) Misbehave(m Misbehaviour) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.written = m, 0
}

// Misbehaviour returns what is done wrong now.
func (s *Server) Misbehaviour() Misbehaviour {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

// admit says how many of n bytes may be written, and what happens after them.
func (s *Server) admit(n int) (allowed int, cut bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	allowed = n
	if limit := s.fault.CutAfter; limit != nil && s.written+int64(allowed) >= *limit {
		allowed, cut = int(*limit-s.written), true
		s.fault.CutAfter = nil
	}
	if limit := s.fault.FullAfter; limit != nil && s.written+int64(allowed) >= *limit {
		allowed, cut, err = int(max(*limit-s.written, 0)), false, syscall.ENOSPC
	}
	allowed = max(allowed, 0)
	s.written += int64(allowed)
	s.stats.Bytes += int64(allowed)
	return allowed, cut, err
}

// sever closes a connection so that the client sees a reset, not an end.
func sever(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// disguise hides posix-rename from a client where it is misbehaviour: pkg/sftp
// announces it for the whole process.
func (s *Server) disguise(channel ssh.Channel) io.ReadWriteCloser {
	if !s.Misbehaviour().NoPosixRename {
		return channel
	}
	return &disguised{Channel: channel}
}

// disguised rewrites the first packet the server writes, SSH_FXP_VERSION.
type disguised struct {
	ssh.Channel
	version []byte // what is known of it; nil once it is sent
	sent    bool
}

func (d *disguised) Write(p []byte) (int, error) {
	if d.sent {
		return d.Channel.Write(p)
	}
	d.version = append(d.version, p...)
	if len(d.version) < 4 || len(d.version) < 4+int(binary.BigEndian.Uint32(d.version)) {
		return len(p), nil
	}
	d.sent = true
	if _, err := d.Channel.Write(withoutExtension(d.version, "posix-rename@openssh.com")); err != nil {
		return 0, err
	}
	return len(p), nil
}

// withoutExtension removes one extension from an SSH_FXP_VERSION packet: length,
// type, version, then pairs of texts (draft-ietf-secsh-filexfer-02, section 4).
func withoutExtension(packet []byte, name string) []byte {
	const head = 4 + 1 + 4
	kept := slices.Clone(packet[:head])
	for rest := packet[head:]; len(rest) > 0; {
		key, after := text(rest)
		_, after = text(after)
		if key != name {
			kept = append(kept, rest[:len(rest)-len(after)]...)
		}
		rest = after
	}
	binary.BigEndian.PutUint32(kept, uint32(len(kept)-4))
	return kept
}

// text reads a text and its length. The packet is our own library's: it is whole.
func text(b []byte) (string, []byte) {
	n := 4 + int(binary.BigEndian.Uint32(b))
	return string(b[4:n]), b[n:]
}
