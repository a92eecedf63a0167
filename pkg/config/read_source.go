package config

import (
	"fmt"
	"net/url"
	"strings"

	"attentive.internal/pkg/contract"
)

// readPrefix reads a URL that the URLs of sources may be below.
func readPrefix(v value) string {
	s := text(v)
	if s == "" {
		return ""
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || !hasScheme(u, "file", "https", "s3"):
		v.fault(fmt.Sprintf("is %q", s), "write a URL that begins with file://, https:// or s3://")
	case u.User != nil:
		v.fault("has a secret in it", "remove user and password")
	case u.RawQuery != "" || u.Fragment != "":
		v.fault(fmt.Sprintf("is %q", s), "remove what follows ? or #")
	case u.Scheme == "file" && (u.Host != "" || !strings.HasPrefix(u.Path, "/")):
		v.fault(fmt.Sprintf("is %q", s), "write an absolute path: file:///folder/")
	case u.Scheme != "file" && u.Host == "":
		v.fault(fmt.Sprintf("is %q", s), "name the host or bucket")
	case strings.Contains(u.Path+"/", "/../"):
		v.fault(fmt.Sprintf("is %q", s), `write the path without ".."`)
	default:
		return s
	}
	return ""
}

var mostOfSources = SourceLimits{Rows: contract.MaxSourceRows, Megabytes: contract.MaxSourceBytes >> 20}

func readSourceLimits(v value) SourceLimits {
	m := v.mapping()
	most := mostOfSources
	l := SourceLimits{
		Rows:      get(m, "rows", most.Rows, whole(1, most.Rows)),
		Megabytes: get(m, "megabytes", most.Megabytes, whole(1, most.Megabytes)),
	}
	m.done()
	return l
}

var defaultDedup = Dedup{Megabytes: 256, DiskMegabytes: 16 << 10}

func readDedup(v value) Dedup {
	m := v.mapping()
	d := Dedup{
		Megabytes:     get(m, "megabytes", defaultDedup.Megabytes, whole(16, 64<<10)),
		DiskMegabytes: get(m, "disk_megabytes", defaultDedup.DiskMegabytes, whole(0, 1<<20)),
	}
	m.done()
	return d
}

var defaultS3 = S3{Endpoint: "https://s3.amazonaws.com"}

func readS3(v value) S3 {
	m := v.mapping()
	s := S3{
		Endpoint: get(m, "endpoint", defaultS3.Endpoint, readEndpoint),
		Region:   get(m, "region", "", text),
	}
	m.done()
	return s
}

func readEndpoint(v value) string {
	s := text(v)
	if s == "" {
		return ""
	}
	u, err := url.Parse(s)
	switch {
	case err == nil && u.User != nil:
		v.fault("has a secret in it", "remove user and password; credentials come from the worker's environment or ~/.aws/credentials")
	case err != nil || !hasScheme(u, "https", "http") || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		v.fault(fmt.Sprintf("is %q", s), "write the service's address without bucket and path, as https://s3.eu-central-1.amazonaws.com")
	default:
		if u.Scheme == "http" && !loopback(u.Hostname()) {
			v.warn("reads audiences unencrypted", "write https unless this is a test network")
		}
		return s
	}
	return ""
}
