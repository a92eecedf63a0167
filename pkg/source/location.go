package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"strings"
	"syscall"

	"attentive.internal/pkg/fault"
)

// prefixes are the URLs that sources may lie below.
type prefixes []*url.URL

// parsePrefixes reads the setting source_prefixes.
func parsePrefixes(texts []string) (prefixes, error) {
	var p prefixes
	var errs []error
	for _, text := range texts {
		u, err := url.Parse(text)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("source prefix %q: %w", text, err))
		case u.Scheme != "file" && u.Scheme != "https" && u.Scheme != "s3":
			errs = append(errs, fmt.Errorf("source prefix %q: scheme %q is none of file, https and s3", text, u.Scheme))
		case u.User != nil || u.RawQuery != "" || u.Fragment != "":
			errs = append(errs, fmt.Errorf("source prefix %q: holds a user name, a query or a fragment", text))
		case u.Scheme == "file" && (!localHost(u) || !path.IsAbs(u.Path)):
			errs = append(errs, fmt.Errorf("source prefix %q: is not of the form file:///folder", text))
		case u.Scheme != "file" && u.Host == "":
			errs = append(errs, fmt.Errorf("source prefix %q: names no host or bucket", text))
		default:
			u.Path = path.Clean("/" + u.Path)
			p = append(p, u)
		}
	}
	return p, errors.Join(errs...)
}

// localHost reports whether a file URL is about this machine (RFC 8089).
func localHost(u *url.URL) bool { return u.Host == "" || u.Host == "localhost" }

// openURL opens the source at text, which name describes.
func (o *Opener) openURL(ctx context.Context, text, name string) (_ io.ReadCloser, size int64, err error) {
	u, err := url.Parse(text)
	switch {
	case err != nil: // its text would hold the whole URL
		return nil, 0, fault.Permanentf(fault.SourceForbidden, "read %s: it is not a valid URL", name)
	case u.Scheme != "file" && u.Scheme != "https" && u.Scheme != "s3":
		return nil, 0, fault.Permanentf(fault.SourceForbidden, "read %s: its scheme is none of file, https and s3", name)
	case u.User != nil:
		return nil, 0, fault.Permanentf(fault.SourceForbidden, "read %s: it holds a user name; credentials do not belong into jobs", name)
	case u.Scheme == "file" && (!localHost(u) || u.RawQuery != "" || u.Fragment != "" || !path.IsAbs(u.Path)):
		return nil, 0, fault.Permanentf(fault.SourceForbidden, "read %s: it is not of the form file:///folder/file", name)
	}
	prefix, rest, ok := o.prefixes.match(u)
	if !ok {
		return nil, 0, fault.Permanentf(fault.SourceForbidden,
			"read %s: it lies below none of source_prefixes, or its path is not plain; an operator who adds its folder there allows it", name)
	}
	switch u.Scheme {
	case "https":
		return o.openWeb(ctx, u, name)
	case "s3":
		return o.buckets.open(ctx, u, o.patience, name)
	}
	return openFile(prefix.Path, rest, name)
}

// match returns the first prefix that u lies below, and the path from there. Dots
// in the path of a file are resolved before anything is compared; how a server
// resolves them is not known, so that other URLs may have none.
func (p prefixes) match(u *url.URL) (prefix *url.URL, rest string, ok bool) {
	clean := path.Clean("/" + u.Path)
	if u.Scheme != "file" && (clean != u.Path || strings.Contains(clean, `\`)) {
		return nil, "", false
	}
	for _, prefix := range p {
		if prefix.Scheme != u.Scheme || u.Scheme != "file" && !strings.EqualFold(prefix.Host, u.Host) {
			continue
		}
		folder := strings.TrimSuffix(prefix.Path, "/") + "/"
		if rest, ok := strings.CutPrefix(clean, folder); ok && rest != "" {
			return prefix, rest, true
		}
	}
	return nil, "", false
}

// allow reports whether u lies below a prefix.
func (p prefixes) allow(u *url.URL) bool {
	_, _, ok := p.match(u)
	return ok
}

// openFile opens the regular file at rest below folder. Symbolic links are
// followed while they stay below it.
func openFile(folder, rest, name string) (_ io.ReadCloser, size int64, err error) {
	root, err := os.OpenRoot(folder)
	if err != nil {
		// The job is not at fault: a volume is not mounted, or the setting is wrong.
		return nil, 0, fault.Blockedf(fault.ScopeDestination, fault.Misconfigured, "read %s: open its source prefix: %w", name, err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	// Opening a named pipe would wait for somebody to write into it.
	f, err := root.OpenFile(rest, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fileFault(err, name)
	}
	stat, err := f.Stat()
	switch {
	case err != nil:
		return nil, 0, errors.Join(fmt.Errorf("read %s: %w", name, err), f.Close())
	case !stat.Mode().IsRegular():
		return nil, 0, errors.Join(fault.Permanentf(fault.SourceForbidden, "read %s: it is not a regular file", name), f.Close())
	}
	return f, stat.Size(), nil
}

// fileFault classifies the failure to open a file below a prefix.
func fileFault(err error, name string) error {
	errno, fromSystem := errors.AsType[syscall.Errno](err)
	switch {
	case errors.Is(err, fs.ErrNotExist), errno == syscall.ENOTDIR, errno == syscall.ENAMETOOLONG, errno == syscall.EINVAL:
		return fault.Permanentf(fault.SourceMissing, "read %s: there is no such file", name)
	case errors.Is(err, fs.ErrPermission):
		return fault.Permanentf(fault.SourceForbidden, "read %s: the worker may not read it; allow its user to", name)
	case errno == syscall.ENXIO:
		return fault.Permanentf(fault.SourceForbidden, "read %s: it is not a regular file", name)
	case !fromSystem, errno == syscall.ELOOP: // refused by os.Root
		return fault.Permanentf(fault.SourceForbidden,
			"read %s: a symbolic link on its way does not stay below the prefix in source_prefixes; links must be relative", name)
	}
	return fmt.Errorf("read %s: %w", name, err)
}
